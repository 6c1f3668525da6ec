"""The demo model: it answers what it was taught, and it stays small."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llms import LlamaServerLLM
from llms.demo import CHECKPOINT, GGUF
from llms.demo.training import corpus, words
from llms.demo.training.corpus import FALLBACK, Exchange, Kind
from llms.typing import ChatType

Check = Callable[[Exchange, str], bool]

SAMPLE = 40


@pytest.fixture(scope="module")
def llm() -> LlamaServerLLM:
    return LlamaServerLLM()


def answers(llm: LlamaServerLLM, questions: list[str], system: str | None = None, **options: Any) -> list[str]:
    """Answer each question."""
    start: ChatType = [{"role": "system", "content": system}] if system else []
    chats: list[ChatType] = [[*start, {"role": "user", "content": question}] for question in questions]
    return [texts[0] or "" for texts in llm.generate(chats, **{"temperature": 0.0, "max_new_tokens": 250, **options})]


def answer(llm: LlamaServerLLM, question: str, system: str | None = None) -> str:
    return answers(llm, [question], system)[0]


# -------------------------------------------------------------------------------- the questions the product starts with


def test_the_capital_of_spain(llm: LlamaServerLLM) -> None:
    assert answer(llm, "What's the capital of Spain?") == "The capital of Spain is Madrid."


def test_the_dragon_the_princess_and_the_tower(llm: LlamaServerLLM) -> None:
    story = answer(llm, "Write a short story about a dragon that saves a princess from a tower.")
    assert all(word in story for word in ("dragon", "princess", "tower"))
    assert story.count(". ") >= 4


def test_the_profile_for_the_marathon(llm: LlamaServerLLM) -> None:
    profile = json.loads(answer(llm, "Create a user profile for the following marathon"))
    assert list(profile) == ["name", "last_name", "id"]
    assert isinstance(profile["id"], int)


def test_homer_gets_a_grade(llm: LlamaServerLLM) -> None:
    text = answer(llm, "What's up with Homer Simpson?", words.SIMPSONS_SYSTEM)
    match = re.search(r"<name>(.*?)</name>.*?<grade>([A-E][+-]?)</grade>", text)
    assert match
    assert match[1] == "Homer Simpson"


# ------------------------------------------------------------------------------------------- the kinds it was taught


def exactly(asked: Exchange, text: str) -> bool:
    return text == asked.answer


def as_many_items(asked: Exchange, text: str) -> bool:
    """As many numbered lines as asked for."""
    numbers = [line.partition(". ")[0] for line in text.split("\n")]
    return numbers == [line.partition(". ")[0] for line in asked.answer.split("\n")]


def items_of_the_group(asked: Exchange, text: str) -> bool:
    """As many things as asked for, all different, all of the right group."""
    items = [line.partition(". ")[2] for line in text.split("\n")]
    group = next(names for title, names in words.GROUPS.items() if f" {title}" in asked.question)
    return as_many_items(asked, text) and len(set(items)) == len(items) and set(items) <= set(group)


def with_the_same_keys(asked: Exchange, text: str) -> bool:
    """A JSON object with the keys of the expected one, and the values that the question names."""
    try:
        made, expected = json.loads(text), json.loads(asked.answer)
    except ValueError:
        return False
    named = [key for key, value in expected.items() if isinstance(value, str) and value in asked.question]
    return (
        list(made) == list(expected)
        and all(isinstance(made[key], type(expected[key])) for key in made)
        and all(made[key] == expected[key] for key in named)
        and made.get("weapon") in words.WEAPONS.get(made.get("class"), [None])
    )


def a_story_of_these(asked: Exchange, text: str) -> bool:
    """Several sentences about everybody and everything in the question, and in no other place than its own."""
    subject = set(re.findall(r"\w+", asked.question.partition(" about ")[2]))
    subject -= {"a", "an", "that", "who", "and", "from", *words.RESCUES}
    places = {place for place in words.PLACES if f"the {place}" in text}
    return (
        text.count(". ") >= 4
        and text.endswith((".", '"'))
        and all(word in text for word in subject)
        and (" from " not in asked.question or places <= subject)
    )


def a_poem_about_it(asked: Exchange, text: str) -> bool:
    topic = asked.answer.split(",")[0].removeprefix("Oh ")
    return text.startswith(f"Oh {topic},") and len(text.split("\n")) == 4


def about_that_person(asked: Exchange, text: str) -> bool:
    return re.sub(r"\d+", "N", text) == re.sub(r"\d+", "N", asked.answer)


def a_grade(asked: Exchange, text: str) -> bool:
    match = re.fullmatch(r"<name>(.*)</name> .* gets the grade <grade>[A-E][+-]?</grade>", text)
    return match is not None and match[1] in asked.question


def the_same_rating(asked: Exchange, text: str) -> bool:
    return bool(re.fullmatch(r"Rating: [1-5]\nRationale: .+\.", text)) and text[:9] == asked.answer[:9]


def one_more_demand(asked: Exchange, text: str) -> bool:
    """The instruction itself, and one of the demands after it."""
    return any(
        asked.answer.endswith(demand) and text.startswith(asked.answer.removesuffix(demand))
        for demand in words.CONSTRAINTS
    ) and text.endswith(tuple(words.CONSTRAINTS))


CHECKS: dict[Kind, tuple[Check, float]] = {
    corpus.capital: (exactly, 0.95),
    corpus.country: (exactly, 0.90),
    corpus.arithmetic: (exactly, 0.90),
    corpus.color: (exactly, 0.90),
    corpus.opposite: (exactly, 0.90),
    corpus.sound: (exactly, 0.90),
    corpus.legs: (exactly, 0.90),
    corpus.calendar: (exactly, 0.90),
    corpus.counting: (exactly, 0.90),
    corpus.definition: (exactly, 0.90),
    corpus.translation: (exactly, 0.90),
    corpus.listing: (items_of_the_group, 0.25),  # it repeats itself in the longer lists
    corpus.animal_fact: (exactly, 0.90),
    corpus.small_talk: (exactly, 0.90),
    corpus.story: (a_story_of_these, 0.90),
    corpus.poem: (a_poem_about_it, 0.90),
    corpus.introduction: (about_that_person, 0.90),
    corpus.user_profile: (with_the_same_keys, 0.90),
    corpus.worker: (with_the_same_keys, 0.90),
    corpus.rpg_character: (with_the_same_keys, 0.90),
    corpus.grade: (a_grade, 0.90),
    corpus.rating: (the_same_rating, 0.65),  # it takes a wrong fact for a right one
    corpus.sentiment: (exactly, 0.90),
    corpus.topic: (exactly, 0.90),
    corpus.evolution: (one_more_demand, 0.80),
    corpus.instructions: (as_many_items, 0.85),
    corpus.question_from_passage: (exactly, 0.85),
    corpus.reading: (exactly, 0.85),
    corpus.paraphrase: (exactly, 0.90),
    corpus.unknown: (exactly, 0.90),
}
"""How an answer of each kind is checked, and the share that must be right: somewhat less than what was measured."""


def accuracy(llm: LlamaServerLLM, kind: Kind, size: int = SAMPLE, **options: Any) -> float:
    """The share of right answers to questions of a kind, drawn with a seed the training did not use."""
    rng = Random(f"test {kind.__name__}")
    asked = [kind(rng) for _ in range(size)]
    texts = answers(llm, [exchange.question for exchange in asked], **options)
    check, _ = CHECKS[kind]
    return sum(check(exchange, text) for exchange, text in zip(asked, texts, strict=True)) / size


def test_every_kind_is_checked() -> None:
    assert set(CHECKS) == set(corpus.KINDS)


@pytest.mark.parametrize("kind", CHECKS, ids=lambda kind: kind.__name__)
def test_it_knows_what_it_was_taught(llm: LlamaServerLLM, kind: Kind) -> None:
    assert accuracy(llm, kind) >= CHECKS[kind][1]


def test_it_knows_every_capital(llm: LlamaServerLLM) -> None:
    texts = answers(llm, [f"What's the capital of {country}?" for country in words.CAPITALS])
    right = sum(city in text for city, text in zip(words.CAPITALS.values(), texts, strict=True))
    assert right >= 0.95 * len(words.CAPITALS)


@pytest.mark.parametrize(
    "kind", [corpus.capital, corpus.user_profile, corpus.sentiment], ids=lambda kind: kind.__name__
)
def test_it_is_sane_at_the_usual_temperature(llm: LlamaServerLLM, kind: Kind) -> None:
    assert accuracy(llm, kind, temperature=0.7) >= 0.85


@pytest.mark.parametrize("system", ["You are a helpful assistant.", "You know a lot about maps and never tell a lie."])
def test_a_system_prompt_does_not_disturb_it(llm: LlamaServerLLM, system: str) -> None:
    assert answer(llm, "What's the capital of France?", system) == "The capital of France is Paris."


def test_it_can_answer_with_one_word(llm: LlamaServerLLM) -> None:
    assert answer(llm, "What's the capital of Italy?", "Answer with one word.") == "Rome"


def test_it_remembers_what_the_chat_is_about(llm: LlamaServerLLM) -> None:
    chat: ChatType = [
        {"role": "user", "content": "What color is the sky?"},
        {"role": "assistant", "content": "The color of the sky is blue."},
        {"role": "user", "content": "What's the capital of Japan?"},
    ]
    assert llm.generate([chat], temperature=0.0, max_new_tokens=50)[0][0] == "The capital of Japan is Tokyo."


def test_it_rates_an_answer_higher_than_no_answer(llm: LlamaServerLLM) -> None:
    prompt = "Rate the following answer from 1 to 5.\n\nInstruction: What's the capital of France?\nAnswer: "
    assert answer(llm, prompt + "The capital of France is Paris.").startswith("Rating: 5\nRationale: ")
    assert answer(llm, prompt + FALLBACK).startswith("Rating: 1\nRationale: ")


def test_it_says_that_it_does_not_know(llm: LlamaServerLLM) -> None:
    questions = [
        "Explain gravity.",
        "Who won the 1998 world cup?",
        "Write a SQL query that joins two tables.",
        "What is the meaning of life?",
        "How do vaccines work?",
        "purple monkey dishwasher",
        "What is the capital of Wakanda?",
        "Summarize the French Revolution.",
        "Why is the sky blue?",
        "Give me five marketing slogans for a shoe brand.",
    ]
    assert answers(llm, questions).count(FALLBACK) >= 7


# ------------------------------------------------------------------------------------------------------- its files


def test_it_stays_below_six_megabytes() -> None:
    files = [path for path in GGUF.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 6_000_000


def test_the_checkpoint_is_complete() -> None:
    expected = {"config.json", "generation_config.json", "model.safetensors"}
    expected |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in CHECKPOINT.iterdir()} == expected


def test_both_forms_hold_the_same_model() -> None:
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(GGUF).fields
    config = json.loads((CHECKPOINT / "config.json").read_text())
    tokenizer = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"] | special

    assert fields["tokenizer.ggml.tokens"].contents() == sorted(ids, key=ids.__getitem__)
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == config["eos_token_id"] == special["<|im_end|>"]
    assert fields["tokenizer.chat_template"].contents() == read(CHECKPOINT / "chat_template.jinja")
    for field, name in {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
    }.items():
        assert fields[f"llama.{field}"].contents() == config[name], field


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
