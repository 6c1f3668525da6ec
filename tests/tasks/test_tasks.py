"""Every task, the same questions; then what steps do with rows, columns and failures."""

import pickle
import pkgutil
from importlib import import_module
from inspect import isabstract
from typing import Any

import pytest
from pydantic import ValidationError

import tasks
from llms import LLM, Fatal, LlamaServerLLM, Rejected
from llms.typing import GenerateOutput, Usage
from tasks import ChatGeneration, GlobalStep, LoadDataFromDicts, Step, Task, TextGeneration
from tasks.typing import PartialBatchError, Row

for module in pkgutil.walk_packages(tasks.__path__, "tasks."):
    import_module(module.name)


def subclasses(cls: type) -> list[type]:
    return [each for sub in cls.__subclasses__() for each in [sub, *subclasses(sub)]]


STEPS = [cls for cls in subclasses(Step) if cls.__module__.startswith("tasks.") and not isabstract(cls)]
TASKS = [cls for cls in STEPS if issubclass(cls, Task)]
EXAMPLES: dict[str, Any] = {
    "instruction": "What's the capital of Spain?",
    "messages": [{"role": "user", "content": "What's the capital of Spain?"}],
    "generations": ["Madrid.", "Lisbon."],
}
ANSWERS = {"UltraFeedback": "Rating: 5\nRationale: right\n\nRating: 1\nRationale: wrong"}
"""What a task can read, where that is not whatever a model says."""


class Echo(LLM):
    """Says what it is told; fails on `boom`, gives up on `dead`, says nothing to `hush`."""

    asked: list[Any] = []
    says: str | None = None

    @property
    def model_name(self) -> str:
        return "echo"

    def generate(self, inputs, num_generations=1, temperature: float = 1.0) -> list[GenerateOutput]:
        self.asked.append(inputs)
        texts = [chat[-1]["content"] for chat in inputs]
        if "boom" in texts:
            raise Rejected("it is too loud")
        if "dead" in texts:
            raise Fatal("no balance: pay")
        return [
            GenerateOutput(
                [None if text == "hush" else self.says or f"{text} ({number})" for number in range(num_generations)],
                finish_reasons=["stop"] * num_generations,
                usage=Usage(input_tokens=3, output_tokens=2 * num_generations),
            )
            for text in texts
        ]


def each(classes):
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


@each(STEPS)
class TestEveryStep:
    def test_is_exported_under_its_own_name(self, cls):
        assert getattr(tasks, cls.__name__) is cls and cls.__name__ in tasks.__all__

    def test_says_what_it_does_and_what_each_field_is(self, cls):
        assert cls.__doc__ and "columns:" in cls.__doc__
        for name, field in cls.model_fields.items():
            assert (field.description or "").endswith("."), name

    def test_refuses_a_misspelt_field_with_the_nearest(self, cls):
        with pytest.raises(ValidationError, match="no `input_batch_sise`: did you mean `input_batch_size`"):
            cls(input_batch_sise=3)


@each(TASKS)
class TestEveryTask:
    def make(self, cls, **fields):
        return cls(llm=Echo(says=ANSWERS.get(cls.__name__)), **fields)

    def row(self, cls):
        return {"id": 7, **{name: EXAMPLES[name] for name in self.make(cls).inputs}}

    def test_keeps_every_column_and_adds_its_own(self, cls):
        task = self.make(cls)
        row = self.row(cls)
        [made] = next(task.process(inputs=[row]))
        assert row.items() <= made.items()
        assert made.keys() == {*row, *task.outputs, "model_name", f"{task.name}_metadata"}

    def test_names_the_column_a_row_lacks(self, cls):
        with pytest.raises(PartialBatchError, match=f"no column `{self.make(cls).inputs[0]}`: the row has `id`"):
            next(self.make(cls).process(inputs=[{"id": 7}]))

    def test_takes_a_model_by_name(self, cls):
        assert isinstance(cls(llm="LlamaServerLLM n_ctx=512").llm, LlamaServerLLM)

    def test_pickles(self, cls):
        task = cls(llm=LlamaServerLLM())
        assert pickle.loads(pickle.dumps(task)) == task

    def test_answers_with_the_demo_model(self, cls):
        if cls.__name__ in ANSWERS:
            pytest.skip("the demo model cannot write what this task reads")
        task = cls(llm=LlamaServerLLM(generation_kwargs={"temperature": 0.0}))
        task.load()
        [made] = next(task.process(inputs=[self.row(cls)]))
        assert "Madrid" in str(made)


class TestRows:
    def test_one_bad_row_costs_one_row(self):
        rows = [{"instruction": text} for text in ["a", "boom", "b", "c"]]
        outcome = TextGeneration(llm=Echo()).run(rows)
        assert [row["generation"] for row in outcome.rows] == ["a (0)", "b (0)", "c (0)"]
        [failure] = outcome.failures
        assert (failure.step, failure.error, failure.message) == ("text_generation", "Rejected", "it is too loud")
        assert failure.row == {"instruction": "boom"}

    def test_standalone_the_good_rows_are_in_the_error(self):
        with pytest.raises(PartialBatchError, match="1 of 2 rows failed") as error:
            next(TextGeneration(llm=Echo()).process(inputs=[{"instruction": "a"}, {"instruction": "boom"}]))
        assert [row["generation"] for row in error.value.rows] == ["a (0)"]

    def test_a_fatal_error_ends_it_all(self):
        with pytest.raises(Fatal, match="pay"):
            TextGeneration(llm=Echo()).run([{"instruction": "a"}, {"instruction": "dead"}])

    def test_no_text_is_a_generation_of_none(self):
        [row] = TextGeneration(llm=Echo()).run([{"instruction": "hush"}]).rows
        assert row["generation"] is None

    def test_an_answer_that_cannot_be_read_costs_its_row_and_is_kept(self):
        class Picky(TextGeneration):
            def format_output(self, text, row):
                return {"generation": int(text or "")}

        outcome = Picky(llm=Echo()).run([{"instruction": "a"}])
        assert not outcome.rows
        assert outcome.failures[0].raw_output == "a (0)" and outcome.failures[0].error == "ValueError"

    def test_several_generations_are_rows_of_their_own_and_tokens_count_once(self):
        outcome = TextGeneration(llm=Echo(), num_generations=3).run([{"instruction": "a"}, {"instruction": "b"}])
        assert [row["generation"] for row in outcome.rows] == [f"{x} ({n})" for x in "ab" for n in range(3)]
        assert outcome.model_usage["echo"].requests == 2
        assert outcome.model_usage["echo"].usage == Usage(input_tokens=6, output_tokens=12)
        counted = [row["text_generation_metadata"]["output_tokens"] for row in outcome.rows]
        assert counted == [6, None, None] * 2

    def test_several_generations_may_stay_together(self):
        [row] = TextGeneration(llm=Echo(), num_generations=2, group_generations=True).run([{"instruction": "a"}]).rows
        assert row["generation"] == ["a (0)", "a (1)"] and row["model_name"] == ["echo", "echo"]
        assert len(row["text_generation_metadata"]) == 2

    def test_the_metadata_hold_what_was_sent_and_what_came(self):
        task = TextGeneration(llm=Echo(), system_prompt="Be brief.", name="first")
        [row] = task.run([{"instruction": "a"}]).rows
        known = row["first_metadata"]
        assert known["raw_input"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
        ]
        assert (known["raw_output"], known["finish_reason"], known["input_tokens"]) == ("a (0)", "stop", 3)
        [row] = TextGeneration(llm=Echo(), add_raw_input=False, add_raw_output=False).run([{"instruction": "a"}]).rows
        assert not {"raw_input", "raw_output"} & row["text_generation_metadata"].keys()

    def test_columns_are_mapped_in_and_out(self):
        task = TextGeneration(
            llm=Echo(), input_mappings={"instruction": "question"}, output_mappings={"generation": "answer"}
        )
        [row] = task.run([{"question": "a"}]).rows
        assert row.keys() == {"question", "answer", "model_name", "text_generation_metadata"}
        assert row["answer"] == "a (0)"
        [failure] = task.run([{"instruction": "a"}]).failures
        assert "no column `question`" in failure.message

    def test_where_a_row_came_from_goes_with_it(self):
        outcome = TextGeneration(llm=Echo()).run([Row({"instruction": "a"}, "x.jsonl:1"), Row({}, "x.jsonl:2")])
        assert outcome.rows[0].origin == "x.jsonl:1" and outcome.failures[0].origin == "x.jsonl:2"


class TestStep:
    class Upper(Step):
        """Writes a column in capitals. Output columns: `loud`."""

        @property
        def inputs(self):
            return ["text"]

        @property
        def outputs(self):
            return ["loud"]

        def process(self, inputs):
            for row in inputs:
                row["loud"] = row["text"].upper()
            yield inputs

    def test_a_bad_row_is_found_in_its_batch(self):
        outcome = self.Upper().run([{"text": "a"}, {"text": None}, {"text": "c"}])
        assert [row["loud"] for row in outcome.rows] == ["A", "C"]
        assert outcome.failures[0].row == {"text": None} and "AttributeError" in outcome.failures[0].error

    def test_batches_are_as_small_as_asked(self):
        sizes = []

        class Sized(self.Upper):
            def process(self, inputs):
                sizes.append(len(inputs))
                yield from super().process(inputs)

        assert len(Sized(input_batch_size=2).run([{"text": "a"}] * 5).rows) == 5
        assert sizes == [2, 2, 1]

    def test_every_list_it_yields_counts(self):
        class Twice(self.Upper):
            def process(self, inputs):
                for row in inputs:
                    yield [row, {"text": row["text"] * 2}]

        assert [row["text"] for row in Twice().run([{"text": "a"}, {"text": "b"}]).rows] == ["a", "aa", "b", "bb"]

    def test_mapped_columns_do_not_leak(self):
        step = self.Upper(input_mappings={"text": "title"}, output_mappings={"loud": "shout"})
        assert step.run([{"title": "a"}]).rows == [{"title": "a", "shout": "A"}]

    def test_a_mapped_column_leaves_the_rows_own_of_that_name_alone(self):
        step = self.Upper(input_mappings={"text": "title"})
        rows = [{"title": "a", "text": "mine"}, {"title": "b"}, {"title": "c", "text": "hers"}]
        mixed = [{"title": "a", "text": "mine", "loud": "A"}, {"title": "b", "loud": "B"}]
        assert step.run(rows).rows == [*mixed, {"title": "c", "text": "hers", "loud": "C"}]
        assert step.run(rows[::-1]).rows == [{"title": "c", "text": "hers", "loud": "C"}, *mixed[::-1]]

        class Own(self.Upper):
            @property
            def outputs(self):
                return ["loud", "text"]

        assert Own(input_mappings={"text": "title"}).run(rows[:1]).rows == [{"title": "a", "text": "a", "loud": "A"}]

    def test_a_row_says_where_it_came_from_and_so_do_its_copies(self):
        row = Row({"a": 1}, "here")
        for each in (row | {"a": 2}, {"b": 1} | row, row.copy(), Row({"c": 1}) | row | Row({}, "there")):
            assert isinstance(each, Row)
        assert [each.origin for each in (row | {"a": 2}, {"b": 1} | row, row.copy())] == ["here"] * 3
        assert (row | {"a": 2}, {"a": 3, "b": 1} | row) == ({"a": 2}, {"a": 1, "b": 1})
        with pytest.raises(TypeError):
            row | 1

    def test_a_name_is_made_of_the_class(self):
        assert (self.Upper().name, LoadDataFromDicts(data=[{}]).name) == ("upper", "load_data_from_dicts")
        with pytest.raises(ValidationError, match="name"):
            self.Upper(name="a b")

    def test_connecting_needs_a_pipeline(self):
        with pytest.raises(ValueError, match="inside `with Pipeline"):
            self.Upper() >> self.Upper()  # noqa: B018

    def test_runs_as_a_prefect_task_of_its_own(self, prefect_server):
        from prefect import flow

        @flow
        def mine():
            return self.Upper().task().submit([{"text": "a"}]).result()

        assert mine().rows == [{"text": "a", "loud": "A"}]

    def test_global_steps_are_steps(self):
        assert issubclass(GlobalStep, Step)


class TestTextGeneration:
    def prompt(self, row, **fields):
        return TextGeneration(llm=Echo(), **fields).format_input(Row(row))

    def test_a_template_is_filled_with_any_columns(self):
        template = "{{ question }}{% if hint is defined %} ({{ hint }}){% endif %} {{ tone | default('plain') }}"
        assert TextGeneration(llm=Echo(), template=template).inputs == ["question"]
        assert self.prompt({"question": "Why?"}, template=template)[-1]["content"] == "Why? plain"
        assert self.prompt({"question": "Why?", "hint": "x"}, template=template)[-1]["content"] == "Why? (x) plain"

    def test_a_rows_own_system_prompt_wins(self):
        row = {"instruction": "a", "system_prompt": "Mine."}
        assert self.prompt(row, system_prompt="Yours.")[0] == {"role": "system", "content": "Mine."}
        assert self.prompt({"instruction": "a"}, system_prompt="Yours.")[0]["content"] == "Yours."
        assert self.prompt({"instruction": "a"})[0]["role"] == "user"

    def test_a_malformed_template_is_refused_with_its_line(self):
        with pytest.raises(ValidationError, match="line 2 of the template"):
            TextGeneration(llm=Echo(), template="a\n{{ b")

    def test_templates_run_in_the_sandbox(self):
        outcome = TextGeneration(llm=Echo(), template="{{ x.__class__.__mro__ }}").run([{"x": "a"}])
        assert not outcome.rows and outcome.failures[0].error == "SecurityError"


class TestChatGeneration:
    def test_the_whole_conversation_is_sent(self):
        chat = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
        ]
        [row] = ChatGeneration(llm=Echo()).run([{"messages": chat}]).rows
        assert row["chat_generation_metadata"]["raw_input"] == chat and row["generation"] == "Bye (0)"

    def test_the_user_must_have_the_last_word(self):
        [failure] = ChatGeneration(llm=Echo()).run([{"messages": [{"role": "assistant", "content": "Hi"}]}]).failures
        assert "must be the user's" in failure.message
