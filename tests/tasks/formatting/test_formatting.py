"""Rows as trainers read them: names, prompts, and pairs that teach something."""

import hashlib

import pytest

from flows import Pipeline
from llms import LlamaServerLLM
from tasks import LoadDataFromDicts, TextGeneration
from tasks.formatting.format_chat_generation_dpo import FormatChatGenerationDPO
from tasks.formatting.format_chat_generation_sft import FormatChatGenerationSFT
from tasks.formatting.format_text_generation_dpo import FormatTextGenerationDPO
from tasks.formatting.format_text_generation_sft import FormatTextGenerationSFT
from tasks.typing import Row

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
HASH = hashlib.sha256(b"Hi").hexdigest()


def answer(text):
    return {"role": "assistant", "content": text}


def pair(generations, ratings, **more):
    """The texts and ratings of the pair that comes of these; `None` when the row is dropped."""
    row = {"instruction": "Hi", "generations": generations, "ratings": ratings, **more}
    outcome = FormatTextGenerationDPO().run([row])
    assert not outcome.failures, outcome.failures
    if not outcome.rows:
        return None
    [made] = outcome.rows
    return [(made[side][-1]["content"], made[f"{side}_rating"]) for side in ("chosen", "rejected")]


class TestSFT:
    def test_an_instruction_becomes_a_conversation(self):
        row = Row({"instruction": "Hi", "generation": "Hello", "id": 7}, "here:0")
        [[made]] = FormatTextGenerationSFT().process([row])
        assert made == {**row, "prompt": "Hi", "prompt_id": HASH, "messages": [USER, answer("Hello")]}
        assert made.origin == "here:0"

    @pytest.mark.parametrize(("prompt", "before"), [("Be brief.", [SYSTEM, USER]), (None, [USER]), ("", [USER])])
    def test_a_system_prompt_comes_first(self, prompt, before):
        row = {"instruction": "Hi", "generation": "Hello", "system_prompt": prompt}
        [made] = FormatTextGenerationSFT().run([row]).rows
        assert made["messages"] == [*before, answer("Hello")] and made["prompt"] == "Hi"

    def test_a_conversation_gets_its_answer_and_keeps_its_own_messages_as_they_were(self):
        row = {"messages": CHAT, "generation": "See you"}
        [made] = FormatChatGenerationSFT().run([row]).rows
        assert made["messages"] == [*CHAT, answer("See you")] and row["messages"] is CHAT and len(CHAT) == 3
        assert (made["prompt"], made["prompt_id"]) == ("Hi", HASH)

    def test_the_prompt_of_a_message_with_an_image_is_its_text(self):
        content = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "Hi"}]
        row = {"messages": [{"role": "user", "content": content}], "generation": "A cat"}
        assert FormatChatGenerationSFT().run([row]).rows[0]["prompt"] == "Hi"

    @pytest.mark.parametrize(
        ("step", "row", "message"),
        [
            (FormatTextGenerationSFT, {"instruction": "Hi", "generation": None}, "`generation` is no text"),
            (FormatTextGenerationSFT, {"instruction": None, "generation": "a"}, "`instruction` is no text"),
            (FormatChatGenerationSFT, {"messages": CHAT[:2], "generation": "a"}, "must be the user's"),
            (FormatChatGenerationSFT, {"messages": [], "generation": "a"}, "must be the user's"),
            (FormatChatGenerationSFT, {"generation": "a"}, "no column `messages`"),
        ],
    )
    def test_a_row_without_anything_to_learn_fails(self, step, row, message):
        [failure] = step().run([row]).failures
        assert message in failure.message


class TestDPO:
    ROW = {"generations": ["a", "b", "c"], "ratings": [3, 5, 1], "generation_models": ["x", "y", "z"]}
    PAIR = {"chosen_model": "y", "chosen_rating": 5, "rejected_model": "z", "rejected_rating": 1}

    def test_the_best_and_the_worst_of_an_instruction(self):
        row = Row({"instruction": "Hi", "system_prompt": "Be brief.", **self.ROW}, "here:0")
        [[made]] = FormatTextGenerationDPO().process([row])
        expected = {"prompt": "Hi", "prompt_id": HASH, **self.PAIR}
        expected |= {"chosen": [SYSTEM, USER, answer("b")], "rejected": [SYSTEM, USER, answer("c")]}
        assert made == {**row, **expected} and made.origin == "here:0"
        assert {*FormatTextGenerationDPO().outputs} == {*expected}

    def test_the_best_and_the_worst_of_a_conversation(self):
        [made] = FormatChatGenerationDPO().run([{"messages": CHAT, **self.ROW}]).rows
        expected = {"prompt": "Hi", "prompt_id": HASH, **self.PAIR}
        expected |= {"chosen": [*CHAT, answer("b")], "rejected": [*CHAT, answer("c")]}
        assert made == {"messages": CHAT, **self.ROW, **expected}

    def test_models_are_none_when_nobody_knows_them(self):
        row = {"instruction": "Hi", "generations": ["a", "b"], "ratings": [1, 2]}
        [made] = FormatTextGenerationDPO().run([row]).rows
        assert (made["chosen_model"], made["rejected_model"]) == (None, None)

    def test_of_equals_the_first_is_taken(self):
        assert pair(["a", "b", "c", "d"], [4, 4, 2, 2]) == [("a", 4), ("c", 2)]

    def test_what_has_no_rating_or_no_text_is_passed_over(self):
        assert pair(["a", "b", "c"], [None, 4, 2.5]) == [("b", 4), ("c", 2.5)]
        assert pair(["a", "b", "c"], [float("nan"), 4, 2]) == [("b", 4), ("c", 2)]
        assert pair([None, "b", "c"], [5, 4, 2]) == [("b", 4), ("c", 2)]

    def test_the_rejected_has_another_text(self):
        assert pair(["a", "a ", "b"], [5, 1, 3]) == [("a", 5), ("b", 3)]

    @pytest.mark.parametrize(
        ("generations", "ratings"),
        [
            (["a", "b"], [3, 3]),
            (["a", "a"], [5, 1]),
            (["a", "b"], [3, None]),
            (["a", "b"], [None, None]),
            ([None, "b"], [5, 1]),
            (["a"], [5]),
            ([], []),
        ],
    )
    def test_a_row_that_prefers_nothing_is_dropped_and_no_failure(self, generations, ratings):
        assert pair(generations, ratings) is None

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"generations": ["a", "b"], "ratings": [1]}, "there are 2 `generations`, and 1 `ratings`"),
            ({"generations": ["a", "b"], "ratings": None}, "`ratings` is `None`, not a list"),
            ({"generations": "ab", "ratings": [1, 2]}, "`generations` is a `str`, not a list"),
            ({"generations": ["a", "b"], "ratings": [1, "good"]}, "rating 2 is no number: it is `'good'`"),
            (
                {"generations": ["a", "b"], "ratings": [1, 2], "generation_models": ["x"]},
                "there are 2 `generations`, and 1 `generation_models`",
            ),
        ],
    )
    def test_a_malformed_row_fails_and_the_others_do_not(self, row, message):
        good = {"instruction": "Hi", "generations": ["a", "b"], "ratings": [2, 1]}
        outcome = FormatTextGenerationDPO().run([good, {"instruction": "Hi", **row}, good])
        assert len(outcome.rows) == 2
        [failure] = outcome.failures
        assert message in failure.message


def test_they_work_in_a_pipeline(prefect_server):
    data = [{"instruction": f"What's the capital of {name}?"} for name in ("Spain", "France", "Italy")]
    ratings = [[5, 1], [3, 3], [2, 4]]
    rated = [row | {"generations": ["good", "bad"], "ratings": each} for row, each in zip(data, ratings, strict=True)]
    with Pipeline(name="formatters") as pipeline:
        source = LoadDataFromDicts(data=rated)
        source >> TextGeneration(llm=LlamaServerLLM(generation_kwargs={"temperature": 0})) >> FormatTextGenerationSFT()
        source >> FormatTextGenerationDPO()
    result = pipeline.run()
    sft, dpo = result["format_text_generation_sft"]["train"], result["format_text_generation_dpo"]["train"]
    assert sft["messages"][1][-1] == answer("The capital of France is Paris.")
    assert dpo["chosen_rating"] == [5, 4] and dpo["rejected_rating"] == [1, 2]
    assert not len(result.errors)
