"""The judge: what it is asked, and what becomes of the many ways it answers."""

import json
from typing import get_args

import jsonschema
import pytest
from pydantic import ValidationError

from flows import Pipeline
from llms import LLM, LlamaServerLLM
from llms.typing import GenerateOutput
from tasks import LoadDataFromDicts
from tasks.feedback.ultra_feedback import Aspect, UltraFeedback
from tasks.formatting.format_text_generation_dpo import FormatTextGenerationDPO
from tasks.typing import Row


class Judge(LLM):
    """Says what it was made to say, whatever it is asked."""

    says: str | None = ""

    @property
    def model_name(self) -> str:
        return "judge"

    def generate(self, inputs, num_generations=1) -> list[GenerateOutput]:
        return [GenerateOutput([self.says] * num_generations) for _ in inputs]


def row(count=2):
    return {"instruction": "What's 2 + 2?", "generations": [f"answer {at}" for at in range(count)]}


def judged(says, count=2, aspect="overall-rating"):
    return UltraFeedback(llm=Judge(says=says), aspect=aspect).run([row(count)])


def parsed(says, count=2, aspect="overall-rating"):
    """The columns that come of an answer, each as a list."""
    outcome = judged(says, count, aspect)
    assert not outcome.failures, outcome.failures[0].message
    return [outcome.rows[0][name] for name in UltraFeedback(llm=Judge(), aspect=aspect).outputs]


class TestPrompt:
    @pytest.mark.parametrize("aspect", get_args(Aspect))
    def test_it_holds_the_criteria_the_instruction_the_texts_and_the_form(self, aspect):
        system, user = UltraFeedback(llm=Judge(), aspect=aspect).format_input(Row(row(3)))
        assert "3 texts" in system["content"]
        text = user["content"]
        assert text.index("What's 2 + 2?") < text.index("answer 0") < text.index("answer 2")
        assert text.index("answer 2") < text.index("#### Output for Text 1") < text.index("#### Output for Text 3")
        assert "Ratings:\n1: " in text and ("Type: <" in text) == (aspect in ("helpfulness", "truthfulness"))

    def test_each_aspect_has_its_own(self):
        prompts = {
            UltraFeedback(llm=Judge(), aspect=each).format_input(Row(row()))[1]["content"][:200]
            for each in get_args(Aspect)
        }
        assert len(prompts) == 5

    @pytest.mark.parametrize(
        ("generations", "message"), [("a", "must be a list of texts"), ([], "nothing to judge"), ([None], "nothing to")]
    )
    def test_nothing_to_judge_is_a_failure_that_costs_nothing(self, generations, message):
        [failure] = UltraFeedback(llm=Judge()).run([{"instruction": "a", "generations": generations}]).failures
        assert message in failure.message and failure.attempts == 0

    def test_a_generation_of_none_is_not_shown_and_not_rated(self):
        judge = UltraFeedback(llm=Judge(says="Rating: 4\nRationale: good\n\nRating: 2\nRationale: bad"))
        texts = ["a", None, "b"]
        prompt = judge.format_input(Row({"instruction": "x", "generations": texts}))[1]["content"]
        assert "<text_2>\nb\n" in prompt and "None" not in prompt
        [made] = judge.run([{"instruction": "x", "generations": texts}]).rows
        assert (made["ratings"], made["rationales"]) == ([4, None, 2], ["good", None, "bad"])


PLAIN = """#### Output for Text 1
Rating: 4
Rationale: Right.

#### Output for Text 2
Rating: 2
Rationale: Wrong."""


class TestAnswers:
    @pytest.mark.parametrize(
        "says",
        [
            PLAIN,
            PLAIN.replace("\n\n", "\n\n\n\n").replace("Rating", "\nRating"),
            f"Sure! Here is what I think of the two texts, by Rating: 1-5.\n\n{PLAIN}",
            f"<think>Rating: 1\nRationale: hm\nRating: 5</think>\n{PLAIN}",
            f"```\n{PLAIN}\n```",
            PLAIN.replace("#### Output for Text 2", "---\n**Text 2:**"),
            PLAIN.replace("Rating:", "**Rating:**").replace("Rationale:", "- **Rationale**:"),
            PLAIN.replace("Rating: 4", "rating: [4]").replace("Rating: 2", "RATING: **2** / 5"),
            PLAIN.replace("Rating: 4", "Rating: 4.0 (good)").replace("Rating: 2", "Rating: 2 out of 5."),
            PLAIN.replace("\nRationale", ". Rationale"),
            PLAIN.replace("Rating: ", "Rating:\n"),
            PLAIN.replace("Rating: ", "##### Rating\n\n").replace("Rationale: ", "##### Rationale\n\n"),
            PLAIN.replace("Rating:", "Rating (1-5):").replace("Rationale:", "Rationale for the rating:"),
            PLAIN.replace(":", " -"),
            PLAIN.replace("Rating", "Score").replace("Rationale", "Explanation"),
            "Rating: 4\nRationale: Right.\nRating: 2\nRationale: Wrong.",
            "Rationale: Right.\nRating: 4\nRationale: Wrong.\nRating: 2",
            "1. Rating: 4\n   Rationale: Right.\n2. Rating: 2\n   Rationale: Wrong.",
            "Text 1 - Rating: 4\nRationale: Right.\nText 2 - Rating: 2\nRationale: Wrong.",
            "\r\n".join(PLAIN.splitlines()),
            "Text 2\nRating: 2\nRationale: Wrong.\n\nText 1\nRating: 4\nRationale: Right.",
        ],
    )
    def test_ratings_and_rationales_however_they_are_dressed(self, says):
        assert parsed(says) == [["Right.", "Wrong."], [4, 2]]

    def test_a_rationale_has_as_many_lines_as_it_likes(self):
        says = PLAIN.replace("Right.", "Right.\n\nIt is four.\nReason: counting. Rationale: twice.")
        assert parsed(says)[1] == [4, 2]
        assert parsed(says)[0][0].startswith("Right.\n\nIt is four.\n") and parsed(says)[0][1] == "Wrong."

    def test_a_missing_rationale_is_none_and_moves_nobody_elses(self):
        assert parsed(PLAIN.replace("\nRationale: Right.", "")) == [[None, "Wrong."], [4, 2]]
        assert parsed("Rating: 4\nRating: 2\nRationale: Wrong.") == [[None, "Wrong."], [4, 2]]

    @pytest.mark.parametrize("nothing", ["N/A", "n/a.", "None", "**NA**", "Not applicable"])
    def test_not_applicable_is_none(self, nothing):
        assert parsed(PLAIN.replace("Rating: 2", f"Rating: {nothing}"))[1] == [4, None]

    @pytest.mark.parametrize(
        ("says", "message"),
        [
            ("Rating: 4\nRationale: Right.", "1 rating came for 2 generations."),
            (f"{PLAIN}\n\n#### Output for Text 3\nRating: 1", "3 ratings came for 2 generations."),
            ("I cannot rate that.", "0 ratings came for 2 generations."),
            (PLAIN.replace("Rating: 2", "Rating: two"), "1 rating came for 2 generations."),
            (PLAIN.replace("Rating: 2", "Rating: 6"), "a rating is 1, 2, 3, 4 or 5; `6` came."),
            (PLAIN.replace("Rating: 2", "Rating: 2.5"), "`2.5` came."),
            (PLAIN.replace("Rating: 2", "Rating: 2/10"), "`2/10` came."),
            (PLAIN.replace("Text 2", "Text 1"), "the ratings are of text 1, 1"),
            (None, "the judge gave no answer."),
        ],
    )
    def test_what_cannot_be_read_costs_its_row_and_says_why(self, says, message):
        outcome = judged(says)
        assert not outcome.rows
        [failure] = outcome.failures
        assert message in failure.message and failure.raw_output == says


TYPED = """#### Output for Text 1
Type: 1
Rationale: Clear.
Rating: 4
Rationale: Right.

#### Output for Text 2
Type: None
Rationale: No help.
Rating: 1
Rationale: Wrong."""


@pytest.mark.parametrize("aspect", ["helpfulness", "truthfulness"])
class TestTypedAnswers:
    @pytest.mark.parametrize(
        "says",
        [
            TYPED,
            f"Here you are.\n\n{TYPED}",
            TYPED.replace("#### Output for Text 1\n", "").replace("#### Output for Text 2\n", ""),
            TYPED.replace("Right.\n", "Right.\n\n").replace("Rating", "**Rating**"),
            TYPED.replace("Type: 1", "Type: 1, 3").replace("Type: None", "Type: N/A (no help)"),
            TYPED.replace("Rationale: Right.", "Rationale for Rating: Right."),
        ],
    )
    def test_types_and_ratings_have_a_rationale_each(self, aspect, says):
        columns = [[1, None], ["Clear.", "No help."], [4, 1], ["Right.", "Wrong."]]
        assert parsed(says, aspect=aspect) == columns

    def test_what_is_missing_is_none(self, aspect):
        says = "Type: 1\nRating: 4\nRationale: Right.\nRating: 2\nType: 3\nRationale: Long.\nRating: 1"
        assert parsed(says, 3, aspect) == [[1, None, 3], [None, None, "Long."], [4, 2, 1], ["Right.", None, None]]

    def test_the_columns_are_called_as_elsewhere(self, aspect):
        made = judged(TYPED, aspect=aspect).rows[0]
        assert {"types", "rationales", "ratings", "rationales-for-ratings", "model_name"} <= made.keys()


class TestStructured:
    def judge(self, **fields):
        return UltraFeedback(llm=LlamaServerLLM(), use_default_structured_output=True, **fields)

    def test_it_needs_a_model_that_can_be_held(self):
        with pytest.raises(ValidationError, match="`Judge` cannot be constrained to a schema"):
            UltraFeedback(llm=Judge(), use_default_structured_output=True)

    @pytest.mark.parametrize("aspect", get_args(Aspect))
    def test_the_schema_asks_for_one_of_each_and_the_answer_is_read(self, aspect):
        judge = self.judge(aspect=aspect)
        chat, shape = judge.format_input(Row(row(2)))
        assert "JSON" in chat[-1]["content"] and "#### Output" not in chat[-1]["content"]
        parts = shape["schema"]["properties"]["texts"]["items"]["required"]
        one = {part: {"type": None, "rating": 3}.get(part, "so") for part in parts}
        jsonschema.validate({"texts": [one, one]}, shape["schema"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"texts": [one]}, shape["schema"])
        columns = judge.format_output(json.dumps({"texts": [one, one]}), Row(row(2)))
        assert list(columns) == judge.outputs and columns["ratings"] == [3, 3] and columns["rationales"] == ["so", "so"]

    def test_a_real_model_is_held_to_it(self):
        llm = LlamaServerLLM(n_ctx=2048, generation_kwargs={"temperature": 0, "max_new_tokens": 400})
        judge = UltraFeedback(llm=llm, use_default_structured_output=True)
        rows = [Row(row(count) | {"instruction": text}) for count in (1, 2, 3) for text in ("a", "Hi")]
        answers = zip(rows, llm.generate_outputs([judge.format_input(each) for each in rows]), strict=True)
        whole = [(each, texts[0]) for each, texts in answers if texts[0]]  # the demo model may never come to an end
        assert whole
        for each, text in whole:
            ratings = judge.format_output(text, each)["ratings"]
            assert len(ratings) == len(each["generations"]) and {*ratings} <= {1, 2, 3, 4, 5}

    @pytest.mark.parametrize(
        ("says", "message"),
        [
            ('{"texts": [{"rationale": "a", "rating": 3}]}', "1 rating came for 2 generations"),
            ('{"texts": [{"rationale": "a", "rating": 3}, {"rationale": "a", "rating": 9}]}', "9 is not one of"),
            ('{"ratings": []}', "no list `texts`"),
            ('{"texts": [', "Expecting value"),
        ],
    )
    def test_json_that_does_not_fit_fails(self, says, message):
        with pytest.raises((ValueError, jsonschema.ValidationError), match=message):
            self.judge().format_output(says, Row(row(2)))


def test_it_judges_in_a_pipeline(prefect_server):
    with Pipeline(name="judged") as pipeline:
        (
            LoadDataFromDicts(data=[row(), row(3), row()])
            >> UltraFeedback(llm=Judge(says=PLAIN))
            >> FormatTextGenerationDPO()
        )
    result = pipeline.run(max_error_rate=0.5)
    assert result["default"]["train"]["chosen_rating"] == [4, 4]
    [error] = result.errors
    assert error["message"] == "2 ratings came for 3 generations." and error["origin"] == "data[1]"
