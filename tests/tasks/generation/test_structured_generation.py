"""Answers of a given shape, and vectors out of hidden states."""

import json
import random
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from flows import Pipeline
from llms import LLM, Fatal, LlamaServerLLM, vLLM
from llms.structured.grammar import (
    NEVER,
    CharSet,
    Concat,
    Expr,
    Repeat,
    Union,
    bounded,
    length_bounds,
    shortest_text,
    to_regex,
)
from llms.structured.json_schema import parse_structure
from llms.structured.numbers import decimal_range, integer_range
from llms.structured.validation import validation_error
from llms.typing import ChatType, GenerateOutput, StructuredOutputType
from tasks import LoadDataFromDicts
from tasks.embedding.generate_embeddings import GenerateEmbeddings
from tasks.generation.structured_generation import StructuredGeneration
from tasks.typing import Row
from tests.support.random_weights import WILD, gguf_file
from tests.support.schemas import GRADE, PATTERNS, SCHEMAS, UNSAYABLE

KNIGHT: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}


AGED = {"type": "object", "properties": {"age": {"type": "integer", "enum": [20, 30]}}, "required": ["age"]}


class Hidden(LLM):
    """Has hidden states: a token per letter, whose vector is its place and its code."""

    @property
    def model_name(self) -> str:
        return "hidden"

    def generate(self, inputs, num_generations=1) -> list[GenerateOutput]:
        return [GenerateOutput([None] * num_generations) for _ in inputs]

    def get_last_hidden_state(self, inputs):
        texts = ["".join(message["content"] for message in chat) for chat in inputs]
        return [np.array([[at, ord(letter)] for at, letter in enumerate(text)], dtype=np.float32) for text in texts]


class Knight(BaseModel):
    """A knight."""

    name: Literal["Mira", "Otto"]


class TestStructuredGeneration:
    def test_the_models_schema_shapes_every_answer(self):
        shape = {"format": "json", "schema": KNIGHT}
        llm = LlamaServerLLM(structured_output=shape, generation_kwargs={"max_new_tokens": 60, "temperature": 0})
        [made] = StructuredGeneration(llm=llm).run([{"instruction": "Create a knight."}]).rows
        assert json.loads(made["generation"]).keys() == {"name", "age"}

    def test_a_row_without_a_shape_is_a_plain_chat(self):
        task = StructuredGeneration(llm=LlamaServerLLM(), system_prompt="Be brief.")
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert task.format_input(Row({"instruction": "Hi"})) == chat
        assert task.format_input(Row({"instruction": "Hi", "structured_output": None})) == chat

    def test_a_rows_own_shape_goes_with_its_chat(self):
        llm = LlamaServerLLM(structured_output={"schema": KNIGHT}, generation_kwargs={"max_new_tokens": 60})
        task = StructuredGeneration(llm=llm)
        rows = [{"instruction": "Hi", "structured_output": {"schema": shape}} for shape in (Knight, json.dumps(AGED))]
        asked = [task.format_input(Row(row)) for row in [*rows, {"instruction": "Hi"}]]
        assert asked[0] == ([{"role": "user", "content": "Hi"}], {"schema": Knight}) and isinstance(asked[2], list)
        keys = [list(json.loads(texts[0] or "")) for texts in llm.generate_outputs(asked)]
        assert keys == [["name"], ["age"], ["name", "age"]]

    @pytest.mark.parametrize("shape", [{"format": "json"}, {"format": "json", "schema": {"type": "knight"}}, "json"])
    def test_a_malformed_shape_costs_its_row_and_no_request(self, shape):
        rows = [{"instruction": "What's the capital of Spain?"}, {"instruction": "Hi", "structured_output": shape}]
        outcome = StructuredGeneration(llm=LlamaServerLLM(generation_kwargs={"temperature": 0})).run(rows)
        assert "Madrid" in outcome.rows[0]["generation"]
        [failure] = outcome.failures
        assert "schema" in failure.message and failure.attempts == 0


class TestGenerateEmbeddings:
    def test_the_last_token_is_the_default(self):
        [[made]] = GenerateEmbeddings(llm=Hidden()).process([Row({"text": "ab", "id": 7}, "here:0")])
        assert made == {"text": "ab", "id": 7, "embedding": [1.0, 98.0], "model_name": "hidden"}
        assert made.origin == "here:0" and all(type(number) is float for number in made["embedding"])

    @pytest.mark.parametrize(("pooling", "vector"), [("last", [1, 98]), ("mean", [0.5, 97.5]), ("cls", [0, 97])])
    def test_it_pools_as_asked(self, pooling, vector):
        [made] = GenerateEmbeddings(llm=Hidden(), pooling=pooling).run([{"text": "ab"}]).rows
        assert made["embedding"] == vector

    def test_it_readies_what_hidden_states_need_and_no_more(self, monkeypatch):
        started = []
        monkeypatch.setattr("llms.vllm.start_engine", lambda llm, kind: started.append(kind.__name__) or kind)
        step = GenerateEmbeddings(llm=vLLM(model="no-such-model-of-embeddings"))
        step.load()
        step.unload()
        assert started == ["HiddenStateEngine"]

    def test_a_conversation_is_a_text_too(self):
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        assert GenerateEmbeddings(llm=Hidden()).run([{"text": chat}]).rows[0]["embedding"] == [1, 98]

    @pytest.mark.parametrize("text", [None, "", [], 3])
    def test_what_is_no_text_fails_alone(self, text):
        outcome = GenerateEmbeddings(llm=Hidden()).run([{"text": "ab"}, {"text": text}, {"text": "c"}])
        assert [row["embedding"] for row in outcome.rows] == [[1, 98], [0, 99]]
        assert "neither a text nor a list of messages" in outcome.failures[0].message

    def test_other_poolings_are_refused(self):
        with pytest.raises(ValidationError, match="pooling"):
            GenerateEmbeddings(llm=Hidden(), pooling="max")

    def test_a_model_without_hidden_states_ends_it_all(self):
        class Mute(Hidden):
            get_last_hidden_state = LLM.get_last_hidden_state

        with pytest.raises(Fatal, match="gives no hidden states"):
            GenerateEmbeddings(llm=Mute()).run([{"text": "a"}])


def test_they_work_in_a_pipeline(prefect_server):
    llm = LlamaServerLLM(structured_output={"schema": KNIGHT}, generation_kwargs={"max_new_tokens": 60})
    with Pipeline(name="shapes") as pipeline:
        source = LoadDataFromDicts(data=[{"instruction": "Create a knight."}] * 3)
        source >> StructuredGeneration(llm=llm)
        source >> GenerateEmbeddings(llm=Hidden(), input_mappings={"text": "instruction"})
    result = pipeline.run()
    assert all(json.loads(text)["age"] >= 0 for text in result["structured_generation"]["train"]["generation"])
    assert result["generate_embeddings"]["train"]["embedding"] == [[15.0, 46.0]] * 3


# ---------------------------------------------------------------------------------------------------- shapes of texts

SHAPES: dict[str, StructuredOutputType] = {
    **{name: {"format": "json", "schema": schema} for name, schema in SCHEMAS.items()},
    **{pattern: {"format": "regex", "schema": pattern} for pattern in PATTERNS},
}


def drawn(shape: Expr, luck: random.Random) -> str:
    """A text of a shape."""
    match shape:
        case CharSet(ranges):
            return chr(luck.randint(*luck.choice(ranges)))
        case Concat(parts):
            return "".join(drawn(part, luck) for part in parts)
        case Union(options):
            return drawn(luck.choice(options), luck)
        case Repeat(part, least, most):
            times = luck.randint(least, least + 4 if most is None else min(most, least + 4))
            return "".join(drawn(part, luck) for _ in range(times))


def python(shape: Expr) -> re.Pattern[str]:
    """A shape as Python writes patterns."""
    return re.compile(re.sub(r"\\x\{(\w+)\}", lambda found: re.escape(chr(int(found[1], 16))), to_regex(shape)))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore:Possible nested set")  # Python's own, about the plain bracket in a class
def test_all_texts_of_a_shape_keep_to_its_structure_however_short_they_must_be(name):
    shape, luck = parse_structure(SHAPES[name]), random.Random(0)
    least = length_bounds(shape)[0]
    assert len(shortest_text(shape).encode()) == least
    for size in (None, least, least + 1, least + 20, least + 200):
        narrow = shape if size is None else bounded(shape, size)
        for text in (drawn(narrow, luck) for _ in range(60)):
            assert validation_error(SHAPES[name], text) is None, text
            assert size is None or len(text.encode()) <= size


@pytest.mark.parametrize("name", UNSAYABLE)
def test_what_no_shape_can_say_is_found_out_afterwards(name):
    structure: StructuredOutputType = {"format": "json", "schema": UNSAYABLE[name]}
    shape, luck = parse_structure(structure), random.Random(0)
    found = [validation_error(structure, drawn(shape, luck)) for _ in range(100)]
    assert None in found and any(found)


def test_a_range_is_exactly_its_numbers():
    luck = random.Random(0)
    for _ in range(60):
        least, most = (luck.choice([None, luck.randint(-300, 300)]) for _ in range(2))
        shape = integer_range(least, most)
        low, high = -1000 if least is None else least, 1000 if most is None else most
        assert (shape == NEVER) is (low > high)
        allowed = python(shape)
        for number in luck.sample(range(-1000, 1001), 300) + [low - 1, low, high, high + 1]:
            assert bool(allowed.fullmatch(str(number))) is (
                (least is None or number >= least) and (most is None or number <= most)
            ), (least, most, number)


def test_a_range_of_decimals_is_exactly_its_numbers():
    luck = random.Random(0)
    for _ in range(60):
        bounds = sorted(Decimal(luck.randint(-300, 300)) / luck.choice([1, 10, 100]) for _ in range(2))
        least, most = (luck.choice([None, bound, bound]) for bound in bounds)
        above, below = luck.random() < 0.5 and least is not None, luck.random() < 0.5 and most is not None
        if least is None and most is None or (shape := decimal_range(least, most, above, below)) == NEVER:
            continue
        allowed = python(shape)
        for number in [Decimal(luck.randint(-3200, 3200)) / 1000 * luck.choice([1, 100]) for _ in range(200)] + bounds:
            beyond = least is not None and (number < least or above and number == least)
            beyond = beyond or most is not None and (number > most or below and number == most)
            text = f"{number:.3f}"
            if number or not text.startswith("-"):
                assert bool(allowed.fullmatch(text)) is not beyond, (least, most, above, below, text)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "nothing is valid"),
        ({"$ref": "#"}, "nothing is valid"),
        ({"$ref": "https://example.com/schema"}, "leads out of the schema"),
        ({"$ref": "#/$defs/nobody"}, "leads nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_said_at_all_is_refused_by_name(schema, why):
    with pytest.raises(Fatal, match=f"`structured_output`.*{why}"):
        LlamaServerLLM(structured_output={"schema": schema}).load()


@pytest.mark.parametrize("pattern", ["^(?=a).b$", r"\bab", r"(.)\1", "^(?!ab)"])
def test_a_pattern_that_no_shape_can_say_is_checked_when_the_text_is_there(pattern):
    structure: StructuredOutputType = {
        "format": "json",
        "schema": {"type": "string", "pattern": pattern, "minLength": 2, "maxLength": 2},
    }
    luck = random.Random(0)
    texts = [json.loads(drawn(parse_structure(structure), luck)) for _ in range(50)]
    assert {len(text) for text in texts} == {2}
    for text in [*texts, "ab", "aa", "bb"]:
        assert (validation_error(structure, json.dumps(text)) is None) is bool(re.search(pattern, text))


# -------------------------------------------------------------------------------- llama.cpp's server, random weights

CHATS: list[ChatType] = [[{"role": "user", "content": f"What is {number} + 4?"}] for number in range(6)]


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    pytest.importorskip("gguf")
    return gguf_file(tmp_path_factory.mktemp("random") / "noise.gguf")


@pytest.mark.parametrize("name", ["nested, optional", "enum, const", "tuples", "unicode keys"])
def test_the_server_closes_every_structure_within_any_budget(name, random_weights):
    llm = LlamaServerLLM(model_path=random_weights, n_threads=1, structured_output=SHAPES[name])
    with pytest.raises(Fatal, match="`max_new_tokens` of") as refusal:
        llm.generate(CHATS[:1], max_new_tokens=1)
    [least] = map(int, re.findall(r"of (\d+) or more: 1 is too small", str(refusal.value)))
    for budget in (least, least + 60):
        for output in llm.generate(CHATS[:3], max_new_tokens=budget, seed=1, **WILD):
            assert output.error is None and validation_error(SHAPES[name], output[0] or "") is None


@pytest.mark.parametrize("budget", [14, 30, 200])
def test_the_server_closes_the_documents_pattern_within_any_budget(budget, random_weights):
    llm = LlamaServerLLM(model_path=random_weights, n_threads=1, structured_output={"format": "regex", "schema": GRADE})
    for output in llm.generate(CHATS, max_new_tokens=budget, seed=1, **WILD):
        assert output.error is None and re.fullmatch(GRADE, output[0] or "")
        assert output.usage.output_tokens <= 2 * budget  # one that was cut is written once more


def test_what_the_server_cannot_close_is_reported(random_weights):
    llm = LlamaServerLLM(
        model_path=random_weights, n_ctx=28, n_threads=1, structured_output={"format": "regex", "schema": GRADE}
    )
    # A chat has 18 tokens, and the shortest text 14.
    for output in llm.generate(CHATS[:2], seed=1, **WILD):
        assert output == [None] and "it was cut short" in str(output.error)
