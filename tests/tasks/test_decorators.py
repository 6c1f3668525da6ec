"""Steps and tasks out of functions: fields, columns, kinds, and what is refused at once."""

import pickle
from inspect import getsource
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from flows import Pipeline, RunFailed
from llms import LLM, LlamaServerLLM
from llms.typing import GenerateOutput
from tasks import GeneratorStep, GlobalStep, LoadDataFromDicts, Step, Task
from tasks.decorators import step, task
from tasks.typing import Row


class Echo(LLM):
    """Says what it is told."""

    @property
    def model_name(self) -> str:
        return "echo"

    def generate(self, inputs, num_generations=1) -> list[GenerateOutput]:
        return [GenerateOutput([chat[-1]["content"]] * num_generations) for chat in inputs]


@step(inputs=["text"], outputs=["length"])
def Length(rows, unit: Literal["words", "letters"] = "words", times: int = 1):
    """Measures a text. Output columns: `length`.

    Args:
        unit: What is counted.
        times (int): What the number is multiplied with.
    """
    for row in rows:
        row["length"] = times * len(row["text"].split() if unit == "words" else row["text"])
    yield rows


@step(inputs=["text"], step_type="global")
def Distinct(rows):
    """Drops a text that was there before."""
    first = {}
    for row in rows:
        first.setdefault(row["text"], row)
    return list(first.values())


@step(outputs=["number"], step_type="generator")
def Numbers(count: Annotated[int, Field(gt=0)], size: int = 3):
    """Counts."""
    for start in range(0, count, size):
        rows = [{"number": number} for number in range(start, min(start + size, count))]
        yield rows, start + size >= count


@task(inputs=["question"], outputs=["answer"])
def Answer(text, row, suffix: str = "!"):
    """Answers loudly. Output columns: `answer`.

    ---
    system_prompt: |
        You like {question}, {"and": "JSON"}.
    user_message_template: |
        {{ question | upper }}? {question}
        Answer.
    ---

    Args:
        suffix: What the answer ends with.
    """
    return {"answer": f"{text}{suffix}", "of": row["question"]}


class TestStep:
    def test_it_is_a_class_like_any_other(self):
        assert issubclass(Length, Step) and Length.__name__ == "Length" and Length.__module__ == __name__
        made = Length()
        assert (made.name, made.inputs, made.outputs) == ("length", ["text"], ["length"])
        assert Length.__doc__.startswith("Measures a text.") and "row in rows" in getsource(Length.process)
        assert pickle.loads(pickle.dumps(made)) == made

    def test_rows_go_through_it_and_keep_where_they_are_from(self):
        outcome = Length().run([Row({"text": "a b"}, "x:1"), Row({"text": None}, "x:2"), Row({}, "x:3")])
        assert outcome.rows == [{"text": "a b", "length": 2}] and outcome.rows[0].origin == "x:1"
        assert [failure.origin for failure in outcome.failures] == ["x:2", "x:3"]
        assert next(Length(unit="letters").process([{"text": "a b"}]))[0]["length"] == 3

    def test_arguments_are_fields_typed_coerced_and_described(self):
        assert Length(times="2").run([{"text": "a b"}]).rows[0]["length"] == 4
        assert Length.model_fields["unit"].description == "What is counted."
        assert Length.model_fields["times"].description == "What the number is multiplied with."
        with pytest.raises(ValidationError, match="times"):
            Length(times="many")
        with pytest.raises(ValidationError, match="has no `unti`: did you mean `unit`"):
            Length(unti="words")

    def test_a_field_may_have_limits_and_no_default(self):
        assert Numbers.model_fields["count"].is_required()
        for fields in ({}, {"count": 0}):
            with pytest.raises(ValidationError, match="count"):
                Numbers(**fields)

    def test_columns_are_mapped(self):
        mapped = Length(input_mappings={"text": "title"}, output_mappings={"length": "size"})
        assert mapped.run([{"title": "a b"}]).rows == [{"title": "a b", "size": 2}]

    def test_a_global_one_gets_all_and_may_return_its_rows(self):
        assert issubclass(Distinct, GlobalStep)
        assert Distinct().run([{"text": text} for text in "abab"]).rows == [{"text": "a"}, {"text": "b"}]

    @pytest.mark.parametrize("offset", [0, 2, 3, 5, 7])
    def test_a_generator_begins_where_it_is_told(self, offset):
        @step(step_type="generator")
        def FromOffset(offset: int = 0):
            yield [{"number": number} for number in range(offset, 7)]

        assert issubclass(Numbers, GeneratorStep)
        for source in (Numbers(count=7), FromOffset()):
            assert [row["number"] for row in source.rows(offset)] == list(range(offset, 7))

    def test_a_function_that_gives_no_rows_is_told_so(self):
        @step()
        def Forgetful(rows):
            for row in rows:
                row["seen"] = True

        @step()
        def Single(rows):
            yield from rows

        for cls, kind in ((Forgetful, "gave nothing"), (Single, "gave a `Row`")):
            [failure] = cls().run([{"text": "a"}]).failures
            assert kind in failure.message and "lists of rows" in failure.message


class TestTask:
    def test_it_is_a_class_like_any_other(self):
        assert issubclass(Answer, Task) and Answer.__doc__.startswith("Answers loudly. Output columns: `answer`.")
        made = Answer(llm=LlamaServerLLM())
        assert (made.inputs, made.outputs) == (["question"], ["answer"])
        assert pickle.loads(pickle.dumps(made)) == made
        assert "---" not in Answer.__doc__ and "user_message_template" in getsource(Answer.format_output)

    def test_the_prompts_are_those_of_the_docstring(self):
        assert Answer(llm=Echo()).format_input(Row({"question": "why {x}"})) == [
            {"role": "system", "content": 'You like why {x}, {"and": "JSON"}.'},
            {"role": "user", "content": "WHY {X}? why {x}\nAnswer."},
        ]

    def test_the_function_reads_the_answer(self):
        [made] = Answer(llm=Echo(), suffix="?!").run([{"question": "a"}]).rows
        assert made["answer"] == "A? a\nAnswer.?!" and made["of"] == "a" and made["model_name"] == "echo"
        assert made["answer_metadata"]["raw_output"] == "A? a\nAnswer."

    def test_inputs_are_those_the_prompts_name_when_none_are_given(self):
        @task(outputs=["n"])
        def Count(text, row):
            """Counts.

            ---
            user_message_template: |
                {a} {% if b is defined %}{{ b }}{% endif %}
            ---
            """
            return {"n": len(text)}

        assert Count(llm=Echo()).inputs == ["a"]
        assert Count(llm=Echo()).run([{"a": "x"}]).rows[0]["n"] == 2

    def test_an_answer_it_cannot_read_costs_its_row(self):
        @task(inputs=["a"], outputs=["n", "m"])
        def Count(text, row):
            """Counts.

            ---
            user_message_template: |
                {a}
            ---
            """
            return {"b": {"n": 1}, "n": None}.get(text, {"n": 1, "m": 2})

        outcome = Count(llm=Echo()).run([{"a": "a"}, {"a": "b"}, {"a": "n"}])
        assert len(outcome.rows) == 1
        assert "returned no `m`, one of its `outputs`" in outcome.failures[0].message
        assert "returned `None`, no dictionary of columns" in outcome.failures[1].message


def rowless():
    yield []


def loose(rows, *more):
    yield rows


async def waiting(rows):
    return rows


def clashing(rows, input_batch_size):
    yield rows


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "function", "message"),
        [
            ({}, rowless, "`rowless` takes no rows"),
            ({}, loose, r"`loose` takes `\*more`: give each argument a name"),
            ({}, waiting, "`waiting` is asynchronous"),
            ({}, clashing, "cannot have an argument `input_batch_size`"),
            ({"inputs": "text"}, Length, r'write `inputs=\["text"\]`'),
            ({"step_type": "globl"}, Length, "did you mean `global`"),
            ({"inputs": ["a"], "step_type": "generator"}, rowless, "a generator gets no rows"),
        ],
    )
    def test_functions_that_cannot_be_steps(self, options, function, message):
        with pytest.raises(ValueError, match=message):
            step(**options)(function)

    def test_a_decorator_without_brackets(self):
        for decorator in (step, task):
            with pytest.raises(ValueError, match=f"write `@{decorator.__name__}\\(\\)`"):
                decorator(rowless)

    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            (None, "needs a docstring with its prompts"),
            ("user_message_template: {a", "are no YAML"),
            ("system_prompt: x", "have no `user_message_template: |`"),
            ("user_message_template: {a}", "`user_message_template` of `f` is no text"),
            ("user_message_template: x\nsystem_promt: y", "did you mean `system_prompt`"),
            ("user_message_template: 'x {{ a'", "`user_message_template` of `f`: line 1 of the template"),
            ("user_message_template: 'x {b}'", "names `b`, no column of `inputs`: there are `a`"),
        ],
    )
    def test_functions_that_cannot_be_tasks(self, prompts, message):
        def f(text, row):
            return {}

        f.__doc__ = f"Does.\n\n---\n{prompts}\n---\n" if prompts else "Does."
        with pytest.raises(ValueError, match=message):
            task(inputs=["a"])(f)

    def test_a_task_reads_an_answer_and_a_row(self):
        with pytest.raises(ValueError, match="its first arguments are the answer and the row"):
            task()(lambda text: {})


def test_they_work_in_a_pipeline(prefect_server):
    with Pipeline(name="decorated") as pipeline:
        data = LoadDataFromDicts(data=[{"text": text} for text in ["a b", "c", "a b"]])
        data >> Distinct() >> Length() >> Answer(llm=Echo(), input_mappings={"question": "text"})
    result = pipeline.run({"length": {"times": "3"}, "answer": {"suffix": "."}})
    made = result["default"]["train"]
    assert made["length"] == [6, 3] and made["answer"] == ["A B? a b\nAnswer..", "C? c\nAnswer.."]


@pytest.mark.parametrize("says", [{}, {"keeps_rows": False}])
def test_one_that_drops_rows_says_so(says, prefect_server):
    @step(inputs=["number"], **says)
    def Even(rows):
        yield [row for row in rows if row["number"] % 2 == 0]

    with Pipeline(name="even") as pipeline:
        LoadDataFromDicts(data=[{"number": number} for number in range(10)]) >> Even(name="even")
    if says:
        assert pipeline.run().summary.rows == 5
    else:
        lost = r"`even` lost rows: 8 went in, 4 came out, .* data\[1\].* `@step\(…, keeps_rows=False\)`"
        with pytest.raises(RunFailed, match=lost):
            pipeline.run()


def test_a_generator_begins_a_pipeline(prefect_server):
    @step(inputs=["number"], outputs=["square"])
    def Square(rows):
        yield [{**row, "square": row["number"] ** 2} for row in rows]

    with Pipeline(name="squares") as pipeline:
        Numbers(count=3) >> Square()
    assert pipeline.run({"numbers": {"count": 10}})["default"]["train"]["square"] == [n * n for n in range(10)]
