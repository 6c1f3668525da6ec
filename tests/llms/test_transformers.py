"""Transformers in this process: real weights, and random ones that keep to no structure of their own accord."""

import gc
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator, validate
from pydantic import ValidationError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from llms import Fatal, Rejected, TransformersLLM, demo, store
from llms.local.generation import TokenSequence
from llms.local.transformers.batch import Batch
from llms.local.transformers.tokens import token_bytes
from llms.typing import ChatType, Usage
from tests.support.random_weights import WILD, checkpoint
from tests.support.schemas import GRADE, PATTERNS, SCHEMAS, Coded, Course, Student, User, record

CHAT: ChatType = [{"role": "user", "content": "What's the capital of Spain?"}]
CHATS: list[ChatType] = [
    [{"role": "user", "content": question}]
    for question in (
        "What's the capital of Spain?",
        "Write a short story about a dragon that saves a princess from a tower.",
        "What is 3 + 4?",
        "Create a user profile for the following marathon",
        "Write a poem about the sea.",
        "What color is the sky?",
    )
] * 2
MADRID = "The capital of Spain is Madrid."


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    """The demo model with noise for weights."""
    return checkpoint(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> Path:
    """Noise for weights again, with the other kind of tokenizer, no chat template, and ends for padding."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["▁", "▁the", "▁dragon", "na", "me", '":', '▁"', "},", "é", "日", "▁1", "99"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokens += [chr(at) for at in range(33, 127)]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    path = tmp_path_factory.mktemp("sentencepiece")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens) + 3,  # a few that no token has, as models like to have
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(params=["demo", "random_weights", "sentencepiece"])
def model(request) -> dict[str, Any]:
    if request.param == "demo":
        return {"model": str(demo.CHECKPOINT)}
    path = {"model": str(request.getfixturevalue(request.param))}
    return path | {"chat_template": "{{ messages[-1].content }}"} if request.param == "sentencepiece" else path


@pytest.fixture(scope="module")
def llm() -> TransformersLLM:
    return TransformersLLM(model=str(demo.CHECKPOINT))


def held(structure: Any, **fields: Any) -> TransformersLLM:
    structured_output = {"format": "regex", "schema": structure} if isinstance(structure, str) else structure
    return TransformersLLM(**{"model": str(demo.CHECKPOINT), "structured_output": structured_output, **fields})


def least(llm: TransformersLLM) -> int:
    """The fewest tokens a text of this structure takes: the number that a refusal names."""
    with pytest.raises(Fatal, match="`max_new_tokens` of") as refusal:
        llm.generate([CHAT], max_new_tokens=1)
    found = re.search(r"of (\d+) or more: 1 is too small", str(refusal.value))
    assert found
    return int(found[1])


# ------------------------------------------------------------------------------------------------------- held to it


@pytest.mark.parametrize("budget", [0, 30, 120])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_matches_its_pattern(pattern, budget, model):
    llm = held(pattern, **model)
    outputs = llm.generate(CHATS[:4], 2, max_new_tokens=max(budget, least(llm)), seed=budget, **WILD)
    texts = [text for output in outputs for text in output]
    assert len(texts) == 8 and all(re.fullmatch(pattern, text or "") for text in texts), texts
    assert {output.error for output in outputs} == {None} and {output.attempts for output in outputs} == {1}
    assert {reason for output in outputs for reason in output.finish_reasons} == {"stop"}


@pytest.mark.parametrize("budget", [14, 20, 50, 100, 200])
def test_random_weights_close_a_pattern_within_any_budget(budget, random_weights):
    llm = held(GRADE, model=str(random_weights))
    for output in llm.generate(CHATS[:4], 4, max_new_tokens=budget, seed=1, **WILD):
        assert all(re.fullmatch(GRADE, text or "") for text in output) and output.attempts == 1
        assert output.usage.output_tokens <= 4 * budget


@pytest.mark.parametrize("budget", [0, 60])
@pytest.mark.parametrize("shape", [User, Course, Student, Coded])
def test_every_text_keeps_to_its_schema(shape, budget, model):
    llm = held({"schema": shape}, max_schema_retries=9, **model)
    outputs = llm.generate(CHATS[:4], 2, max_new_tokens=max(budget, least(llm)), seed=budget, **WILD)
    for output in outputs:
        assert output.error is None and output.finish_reasons == ["stop"] * 2
        for text in output:
            shape.model_validate_json(text or "")


@pytest.mark.parametrize("name", ["patterns", "recursive", "formats", "numbers", "unicode keys"])
def test_random_weights_keep_to_nasty_schemas_at_once(name, random_weights):
    llm = held({"format": "json", "schema": SCHEMAS[name]}, model=str(random_weights))
    for budget in (least(llm), 120):
        for output in llm.generate(CHATS[:4], max_new_tokens=budget, seed=budget, **WILD):
            assert output.error is None and output.attempts == 1
            validate(json.loads(output[0] or ""), SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"do_sample": False}, {"repetition_penalty": 1.3}], ids=str)
def test_a_schema_is_kept_to_however_tokens_are_chosen(greedy, model):
    for output in held({"schema": User}, **model).generate(CHATS[:4], max_new_tokens=40, seed=1, **greedy):
        User.model_validate_json(output[0] or "")


def test_a_schema_of_ones_own(model):
    schema = {
        "type": "object",
        "properties": {
            "rating": {"type": "integer", "minimum": 1, "exclusiveMaximum": 6},
            "tags": {"type": "array", "items": {"enum": ["a", 2, None]}, "maxItems": 3},
            "pattern": {"type": "string", "maxLength": 3},
        },
        "required": ["rating"],
        "additionalProperties": False,
    }
    for output in held({"format": "json", "schema": schema}, **model).generate(CHATS, max_new_tokens=40, **WILD):
        assert output.error is None
        validate(json.loads(output[0] or ""), schema)


def test_what_no_automaton_can_say_is_checked_and_asked_again(random_weights):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 3}}, "required": ["n"]}
    llm = held({"schema": schema}, model=str(random_weights), max_schema_retries=9)
    outputs = llm.generate(CHATS, max_new_tokens=8, seed=1, **WILD)
    assert {output.attempts for output in outputs} > {1}
    for output in outputs:
        assert output.error is None and json.loads(output[0] or "")["n"] % 3 == 0
    assert llm.generate(CHATS, max_new_tokens=8, seed=1, **WILD) == outputs
    greedy = held({"schema": schema}, max_schema_retries=30).generate(CHATS, max_new_tokens=8, temperature=0)
    assert {output.attempts for output in greedy} > {1} and not any(output.error for output in greedy)


def test_what_never_comes_right_costs_its_own_chat_only():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "not": {"type": "integer"}}}, "required": ["n"]}
    (output,) = held({"schema": schema}).generate([CHAT], 2, max_new_tokens=8)
    assert output == [None, None] and output.finish_reasons == ["error", "error"] and output.attempts == 3
    assert isinstance(output.error, Rejected) and "`$.n`" in str(output.error) and output.usage.output_tokens > 10


def test_a_budget_that_is_too_small_is_refused_with_the_number_it_needs():
    llm = held({"schema": User})
    needed = least(llm)
    with pytest.raises(Fatal, match=f"of {needed} or more"):
        llm.generate_outputs([CHAT], max_new_tokens=needed - 1)
    User.model_validate_json(llm.generate([CHAT], max_new_tokens=needed)[0][0] or "")


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(Fatal, match="`structured_output`.*a backreference"):
        held(r"(a|b)\1").load()
    with pytest.raises(Fatal, match="`structured_output` cannot be compiled"):
        held({"schema": {"type": "integer", "minimum": 5, "maximum": 3}}).load()


def test_a_structure_has_an_end_of_its_own():
    with pytest.raises(Fatal, match="`stop` and `structured_output` exclude each other"):
        held({"schema": User}).generate([CHAT], stop="}")


# -------------------------------------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("structure", [None, {"schema": User.model_json_schema()}], ids=bool)
@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "seeded"])
def test_texts_are_the_same_alone_and_together(structure, options):
    alone, together = (held(structure, batch_size=size) for size in (1, 5))
    expected = [alone.generate([chat], 2, max_new_tokens=40, **options)[0] for chat in CHATS[:6]]
    assert together.generate(CHATS[:6], 2, max_new_tokens=40, **options) == expected
    assert alone.generate(CHATS[:6], 2, max_new_tokens=40, **options) == expected
    assert alone._engine() is together._engine()


def test_greedy_texts_are_those_of_plain_transformers(llm):
    engine = llm._engine()
    prompts = [prompt for prompt in engine.tokenize(CHATS[:6], None) if isinstance(prompt, list)]
    expected = [
        engine.tokenizer.decode(
            engine.model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0][len(prompt) :],
            skip_special_tokens=True,
        )
        for prompt in prompts
    ]
    assert [output[0] for output in llm.generate(CHATS[:6], temperature=0, max_new_tokens=40)] == expected


def test_chats_with_structures_of_their_own_are_one_batch(llm):
    schemas = [record(kind={"const": f"kind {at}"}, n={"type": "integer"}) for at in range(8)]
    requests = [
        (llm.with_structured_output({"schema": schema}), chat) for schema, chat in zip(schemas, CHATS, strict=False)
    ]
    requests += [(llm.with_structured_output({"schema": "a{400}"}), CHAT)]
    model, sizes = llm._engine().model, list[int]()
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    options = {"temperature": 0, "max_new_tokens": 30}
    *together, refused = llm.generate_together(requests, **options)
    hook.remove()
    assert set(sizes) == {8}
    assert isinstance(refused.error, Rejected) and "`structured_output` needs" in str(refused.error)
    for (held, chat), schema, output in zip(requests, schemas, together, strict=False):
        validate(json.loads(output[0] or ""), schema)
        assert held.generate([chat], **options) == [output]
    mixed = llm.generate_together([requests[0], (llm, CHAT), requests[1]], **options)
    assert mixed == [together[0], [MADRID], together[1]]


def test_a_seed_repeats_whatever_else_is_asked(llm):
    options = {"temperature": 1.5, "max_new_tokens": 40}
    first = llm.generate(CHATS, 2, seed=7, **options)
    assert llm.generate(CHATS, 2, seed=7, **options) == first
    assert llm.generate(CHATS[1:2], 2, seed=7, **options) == first[1:2]
    assert llm.generate(CHATS, 2, seed=8, **options) != first
    assert first[1][0] != first[1][1]
    assert TransformersLLM(model=llm.model, seed=7).generate(CHATS[1:2], 2, **options) == first[1:2]
    shorter = llm.generate(CHATS[1:2], seed=7, **options | {"max_new_tokens": 20})
    assert (first[1][0] or "").startswith(shorter[0][0] or "?")


def test_without_a_seed_texts_differ(llm):
    texts = {llm.generate(CHATS[1:2], temperature=1.5, max_new_tokens=40)[0][0] for _ in range(3)}
    assert len(texts) == 3


def test_texts_are_drawn_as_likely_as_the_model_finds_them(llm):
    engine = llm._engine()
    (prompt,) = engine.tokenize(CHATS[1:2], None)
    with torch.inference_mode():
        odds = engine.model(torch.tensor([prompt])).logits[0, -1].float().softmax(-1)
    texts = [TokenSequence(list(prompt), 1, seed=1, generation=number) for number in range(1000)]
    engine.write(texts, engine.defaults.with_options({"top_k": 0}), batch_size=1000)
    drawn = torch.bincount(torch.tensor([text.tokens[0] for text in texts]), minlength=len(odds)) / len(texts)
    assert (drawn - odds).abs().max() < 0.06


def test_from_many_threads(llm):
    expected = llm.generate(CHATS, temperature=0, max_new_tokens=20)
    found: dict[int, Any] = {}
    ask = lambda at: found.update({at: llm.generate([CHATS[at]], temperature=0, max_new_tokens=20)[0]})  # noqa: E731
    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(CHATS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(CHATS))] == expected


def test_no_chats_and_no_generations(llm):
    assert llm.generate([]) == [] == llm.get_last_hidden_state([])


@pytest.fixture
def little_memory(llm):
    """The demo model where there is memory for three rows at once."""
    sizes: list[int] = []

    def compute(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows = len(kwargs["input_ids"])
        sizes.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError(f"no memory for {rows} rows")

    llm.unload()
    hook = llm._engine().model.base_model.register_forward_pre_hook(compute, with_kwargs=True)
    yield sizes
    hook.remove()
    llm.unload()


def test_where_memory_runs_out_batches_are_halved_and_that_is_remembered(llm, little_memory, caplog):
    outputs = llm.generate([CHAT] * 9, temperature=0, max_new_tokens=20)
    assert outputs == [[MADRID]] * 9 and {output.error for output in outputs} == {None}
    assert [size for size in little_memory if size > 3] == [9, 4] and "Memory ran out" in caplog.text
    little_memory.clear()
    assert llm.generate([CHAT] * 9, temperature=0, max_new_tokens=20) == outputs
    assert len(llm.get_last_hidden_state([CHAT] * 3)) == 3
    assert max(little_memory) <= 3


def test_what_does_not_fit_in_memory_even_alone_costs_its_own_answer_only(llm, little_memory):
    def compute(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 100:
            raise torch.OutOfMemoryError("no memory for this one")

    hook = llm._engine().model.base_model.register_forward_pre_hook(compute, with_kwargs=True)
    outputs = llm.generate([CHAT, CHAT * 10, CHAT], 2, temperature=0, max_new_tokens=20)
    assert outputs[0] == outputs[2] == [MADRID] * 2
    assert outputs[1] == [None] * 2 and isinstance(outputs[1].error, Rejected)
    assert "no memory on `cpu`" in str(outputs[1].error) and "`max_new_tokens`" in str(outputs[1].error)
    with pytest.raises(Rejected, match="no memory on `cpu`"):
        llm.get_last_hidden_state([CHAT * 10])
    hook.remove()


# ------------------------------------------------------------------------------------------------------- one at a time


def test_answers_and_says_what_it_cost(llm):
    (output,) = llm.generate([CHAT], 2, temperature=0)
    assert output == [MADRID] * 2
    assert output.finish_reasons == ["stop", "stop"] and output.error is None and output.seconds > 0
    assert (output.usage.input_tokens, output.usage.output_tokens) == (18, 18)


def test_a_text_is_cut_where_it_was_asked_to(llm):
    (cut,) = llm.generate([CHAT], temperature=0, max_new_tokens=3)
    assert cut.finish_reasons == ["length"] and cut.usage == Usage(input_tokens=18, output_tokens=3)
    for stop in (" is", ["nowhere", "Spain is"], [" is Madrid", " is"]):
        (stopped,) = llm.generate([CHAT], temperature=0, stop=stop)
        assert stopped.finish_reasons == ["stop"] and (stopped[0] or "").rstrip() in "The capital of Spain"
        assert stopped.usage.output_tokens < 9


def test_sampling_options_do_what_they_say(llm):
    story = CHATS[1:2]
    free = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 30, "seed": 1}
    greedy = llm.generate(story, temperature=0, max_new_tokens=30)
    assert llm.generate(story, do_sample=False, max_new_tokens=30) == greedy
    assert llm.generate(story, **free) != greedy
    for narrow in ({"top_k": 1}, {"top_p": 0.001}, {"min_p": 1.0}):
        assert llm.generate(story, **free | narrow) == greedy
    assert llm.generate(story, **free | {"typical_p": 0.1}) != llm.generate(story, **free)
    count = {"temperature": 0, "max_new_tokens": 60}
    tokens = lambda text: re.findall(r"\w+", text[0][0] or "")  # noqa: E731
    plain, said = (tokens(llm.generate(story, **count, repetition_penalty=penalty)) for penalty in (1.0, 1.5))
    assert len(set(said)) / len(said) > len(set(plain)) / len(plain)


def test_a_penalty_does_not_depend_on_padding(llm):
    options = {"temperature": 0, "repetition_penalty": 1.3, "max_new_tokens": 30}
    assert llm.generate(CHATS[:6], **options) == [llm.generate([chat], **options)[0] for chat in CHATS[:6]]


def test_the_models_own_configuration_holds_until_a_call_says_otherwise(random_weights, tmp_path):
    for file in random_weights.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    own = {"do_sample": True, "temperature": 1.5, "top_k": 3, "max_new_tokens": 7, "eos_token_id": [2, 5]}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    llm, plain = TransformersLLM(model=str(tmp_path)), TransformersLLM(model=str(random_weights))
    engine = llm._engine()
    assert (engine.defaults.temperature, engine.defaults.top_k, engine.max_new_tokens) == (1.5, 3, 7)
    same = {"temperature": 1.5, "top_k": 3, "max_new_tokens": 7}
    assert llm.generate(CHATS[:6], seed=1) == plain.generate(CHATS[:6], seed=1, **same)
    assert llm.generate(CHATS[:6], temperature=0) == plain.generate(CHATS[:6], temperature=0, max_new_tokens=7)


@pytest.fixture
def configured(random_weights, tmp_path) -> Callable[..., TransformersLLM]:
    """The model with random weights, and a configuration that says how to generate."""

    def model(*, structure: Any = None, **config: Any) -> TransformersLLM:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for file in random_weights.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **config}))
        return held(structure, model=str(folder))

    return model


def test_a_model_that_says_not_to_sample_does_not_until_a_call_asks_it_to(configured, random_weights):
    llm = configured(do_sample=False, max_new_tokens=12)
    greedy = TransformersLLM(model=str(random_weights)).generate(CHATS[:3], temperature=0, max_new_tokens=12)
    assert llm.generate(CHATS[:3]) == greedy == llm.generate(CHATS[:3], top_k=40)
    for asked in ({"do_sample": True}, {"temperature": 1.5}):
        assert llm.generate(CHATS[:3], seed=1, **asked) != greedy


@pytest.mark.parametrize(
    "config",
    [
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(2048))},
        {"bad_words_ids": [[token] for token in range(3, 2048)]},
        {"min_new_tokens": 40},
        {"forced_eos_token_id": 2},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_else_a_models_configuration_forbids_leaves_a_structure_its_tokens(config, configured):
    llm = configured(structure=r"(ab){12}|\d{24}", **config)
    for output in llm.generate(CHATS[:4], 2, max_new_tokens=30, seed=1, **WILD):
        assert output.error is None and output.attempts == 1
        assert all(re.fullmatch(r"(ab){12}|\d{24}", text or "") for text in output)


def test_what_a_models_configuration_forbids_holds_where_nothing_is_structured(configured):
    letter = transformers.AutoTokenizer.from_pretrained(demo.CHECKPOINT).convert_tokens_to_ids("a")
    llm = configured(suppress_tokens=[token for token in range(2048) if token != letter])
    assert llm.generate([CHAT], max_new_tokens=9, temperature=0) == [["a" * 9]]


def test_a_chat_that_is_too_long_costs_its_own_answer_only(llm):
    outputs = llm.generate([CHAT, CHAT * 200, CHAT], temperature=0)
    assert outputs[0] == outputs[2] == [MADRID]
    assert outputs[1] == [None] and isinstance(outputs[1].error, Rejected) and "2048" in str(outputs[1].error)
    with pytest.raises(Rejected, match="too long for the 2048"):
        llm.get_last_hidden_state([CHAT * 200])


def test_the_context_ends_a_text_and_must_leave_room_for_a_structure(sentencepiece):
    fields = {"model": str(sentencepiece), "chat_template": "{{ messages[-1].content }}"}
    chats: list[ChatType] = [[{"role": "user", "content": "x" * length}] for length in (500, 8)]
    first, second = TransformersLLM(**fields).generate(chats, max_new_tokens=30, stop="nowhere", **WILD)
    assert first.usage.input_tokens == 500 and first.usage.output_tokens <= 12 and second.error is None
    first, second = held({"schema": User}, **fields).generate(chats, max_new_tokens=60)
    assert isinstance(first.error, Rejected) and "leaves 12 of the 512" in str(first.error) and second.error is None


def test_an_image_is_rejected_and_parts_of_text_are_joined(llm):
    parts = [{"type": "text", "text": "What's the capital "}, {"type": "text", "text": "of Spain?"}]
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    chats: list[ChatType] = [[{"role": "user", "content": parts}], [{"role": "user", "content": [image]}]]
    read, refused = llm.generate(chats, temperature=0)
    assert read == [MADRID]
    assert isinstance(refused.error, Rejected) and "image_url" in str(refused.error)


def test_a_template_may_refuse_a_chat(llm):
    template = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn, please') }}{% endif %}"
        + (demo.CHECKPOINT / "chat_template.jinja").read_text()
    )
    picky = TransformersLLM(model=llm.model, chat_template=template)
    answered, refused = picky.generate([CHAT, CHAT * 2], temperature=0)
    assert answered == [MADRID] and picky._engine() is llm._engine()
    assert isinstance(refused.error, Rejected) and "refuses this chat: one turn, please" in str(refused.error)


def test_without_a_template_says_what_to_set(sentencepiece):
    with pytest.raises(Fatal, match="has no chat template: set `chat_template`"):
        TransformersLLM(model=str(sentencepiece)).generate([CHAT])


def test_hidden_states_are_those_of_transformers(llm):
    engine = llm._engine()
    states = llm.get_last_hidden_states(CHATS[:6])
    for prompt, state in zip(engine.tokenize(CHATS[:6], None), states, strict=True):
        with torch.inference_mode():
            own = engine.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0].numpy()
        assert state.shape == (len(prompt), 192) and state.dtype == np.float32
        assert np.abs(state - own).max() < 1e-3


# -------------------------------------------------------------------------------------------------- tokens and bytes


def test_the_bytes_of_tokens_spell_what_the_tokenizer_reads(sentencepiece):
    text = "The naïve dragon 日本 said: “hi”\n\t{1}"
    for path in (demo.CHECKPOINT, sentencepiece):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        spelled = token_bytes(tokenizer, [])
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(spelled[token] for token in tokens).decode() == text
        assert not any(spelled[token] for token in tokenizer.all_special_ids)


def test_what_must_not_be_said_has_no_chance():
    llm = held("[ab]{3}")
    engine = llm._engine()
    prompts = torch.zeros((4, 2), dtype=torch.long)
    texts = [TokenSequence([0, 0], 9, 1, row, automaton=llm._automaton(engine)) for row in range(4)]
    batch = Batch(torch, texts, prompts, torch.ones_like(prompts), [2], engine.token_bytes)
    scores = torch.full((4, 2048), -1e9)
    scores[:, 7] = 1e9  # what the model would say by far the likeliest
    left = batch.sample(prompts, batch.mask_logits(prompts, scores)).argmax(-1)
    assert all(set(engine.token_bytes[token]) <= set(b"ab") for token in left.tolist())


# ----------------------------------------------------------------------------------------------------- coming and going


def test_a_gguf_file_is_as_good_as_a_folder():
    pytest.importorskip("gguf")
    llm = TransformersLLM(model=str(demo.GGUF))
    assert llm.generate([CHAT], temperature=0) == [[MADRID]]
    llm.unload()


def test_another_tokenizer_and_another_type(llm):
    other = TransformersLLM(model=llm.model, tokenizer=str(demo.CHECKPOINT), dtype="bfloat16", device="cpu")
    assert other.generate([CHAT], temperature=0) == [[MADRID]]
    assert other._engine().model.dtype == torch.bfloat16 and llm._engine().model.dtype == torch.float32
    other.unload()


@pytest.mark.parametrize("quantization", ["8bit", {"quant_method": "bitsandbytes", "load_in_8bit": True}], ids=str)
def test_quantized_weights_take_less_memory(quantization, llm):
    pytest.importorskip("bitsandbytes")
    other = TransformersLLM(model=llm.model, quantization=quantization)
    assert other.generate([CHAT], temperature=0) == [[MADRID]]
    assert other._engine().model.get_memory_footprint() < llm._engine().model.get_memory_footprint() / 2
    other.unload()


def test_quantized_weights_keep_to_a_structure(random_weights):
    pytest.importorskip("bitsandbytes")
    quantized = held({"schema": Student}, model=str(random_weights), quantization="4bit")
    for output in quantized.generate(CHATS[:4], max_new_tokens=90, seed=1, **WILD):
        Student.model_validate_json(output[0] or "")
    assert (
        quantized._engine().model.get_memory_footprint()
        < held(None, model=str(random_weights))._engine().model.get_memory_footprint() / 2
    )
    quantized.unload()


@pytest.fixture
def adapter(random_weights, tmp_path) -> Path:
    """A small LoRA adapter of the model with random weights, random itself."""
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(random_weights, dtype="float32")
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_changes_what_is_said_as_peft_does(adapter, random_weights):
    import peft

    plain = TransformersLLM(model=str(random_weights))
    adapted = TransformersLLM(model=str(random_weights), adapter=str(adapter))
    bare = transformers.AutoModelForCausalLM.from_pretrained(random_weights, dtype="float32")
    theirs = peft.PeftModel.from_pretrained(bare, str(adapter)).eval()
    engine = adapted._engine()
    (prompt,) = engine.tokenize([CHAT], None)
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0].numpy()
    (ours,), (without,) = adapted.get_last_hidden_state([CHAT]), plain.get_last_hidden_state([CHAT])
    assert np.abs(ours - expected).max() < 1e-3 and np.abs(ours - without).max() > 1e-2
    texts = [llm.generate(CHATS[:3], temperature=0, max_new_tokens=12) for llm in (plain, adapted, plain)]
    assert texts[0] == texts[2] != texts[1] and engine is not plain._engine()
    structured = held({"schema": User}, model=str(random_weights), adapter=str(adapter))
    assert structured._engine() is engine
    for output in structured.generate(CHATS[:3], max_new_tokens=40, seed=1, **WILD):
        User.model_validate_json(output[0] or "")
    adapted.unload()


def test_an_adapter_that_was_trained_again_is_asked_again(adapter, random_weights):
    llm = TransformersLLM(model=str(random_weights), adapter=str(adapter))
    first = store.key_of(llm, CHAT, {}, 0)
    assert store.key_of(llm, CHAT, {}, 0) == first
    os.utime(adapter / "adapter_model.safetensors", (1, 1))
    assert store.key_of(llm, CHAT, {}, 0) != first


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "./nowhere"}, r"finds no `\./nowhere`: `model` is the path of"),
        ({"model": "/nowhere/at/all.gguf"}, r"finds no `/nowhere/at/all\.gguf`"),
        ({"adapter": "./nowhere"}, "cannot load"),
        ({"quantization": {"quant_method": "magic"}}, "cannot load .*magic"),
        ({"device": "banana"}, "cannot load .*banana"),
        ({"model_kwargs": {"attention": "eager"}}, "cannot load .*'attention'"),
        ({"device": "cuda:77"}, r"`device='cuda:77'`: this process sees \d+ GPUs with `CUDA_VISIBLE_DEVICES=`"),
        ({"cuda_devices": [76, 77]}, r"`cuda_devices=\[76, 77\]`: this process sees \d+ GPUs"),
        ({"cuda_devices": [-1]}, r"`cuda_devices=\[-1\]`: this process sees \d+ GPUs .*counted from 0"),
        ({"cuda_devices": []}, r"`cuda_devices=\[\]` names no GPU: give their numbers, `auto`"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_named(fields, why, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for ask in (lambda llm: llm.load(), lambda llm: llm.generate_outputs([CHAT])):
        with pytest.raises(Fatal, match=why):
            ask(TransformersLLM(**{"model": str(demo.CHECKPOINT), **fields}))


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "text.txt").write_text("not a model")
    (tmp_path / "empty").mkdir()
    for name, why in (("text.gguf", "cannot load"), ("text.txt", "is no GGUF file"), ("empty", "cannot load")):
        with pytest.raises(Fatal, match=why) as failure:
            TransformersLLM(model=str(tmp_path / name)).load()
        assert f"{tmp_path / name}" in str(failure.value)


@pytest.mark.parametrize("missing", ["torch", "transformers", "outlines_core"])
def test_a_missing_package_is_named_with_its_cure(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    llm = held({"schema": User}, model_kwargs={"use_cache": True})
    with pytest.raises(Fatal, match=rf"`{missing}` package: `pip install 'distilflow\[transformers\]'`"):
        llm.load()


@pytest.mark.parametrize("quantization", ["4bit", {"load_in_8bit": True}, {"quant_method": "bitsandbytes"}], ids=str)
def test_a_missing_package_for_smaller_weights_is_named_with_its_cure(quantization, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    llm = TransformersLLM(model=str(demo.CHECKPOINT), quantization=quantization)
    with pytest.raises(Fatal, match=r"`bitsandbytes` package: `pip install 'distilflow\[quantization\]'`"):
        llm.load()


def test_is_plain_data(llm):
    llm.load()
    assert pickle.loads(pickle.dumps(llm)) == llm and llm.model_name == llm.model
    secret = TransformersLLM(model=llm.model, token="hf_secret")
    assert "hf_secret" not in repr(secret) + secret.model_dump_json() + str(secret._engine_key())
    assert secret._engine() is llm._engine()
    with pytest.raises(ValidationError, match="`torch_dtype`.*did you mean `dtype`"):
        TransformersLLM(model=llm.model, torch_dtype="float16")


def test_unloaded_it_lets_go_of_its_memory_and_loads_again(llm):
    engine, model = weakref.ref(llm._engine()), weakref.ref(llm._engine().model)
    held({"schema": User}).load()  # the same engine, and an automaton
    gc.collect()  # the tests before had errors, whose tracebacks hold on to it
    llm.unload()
    assert engine() is None and model() is None
    assert llm.generate([CHAT], temperature=0) == [[MADRID]]


SCRIPT = """
import sys, threading
import torch
torch.set_num_threads(1)
from llms import TransformersLLM
llm = TransformersLLM(model=sys.argv[1], structured_output={"format": "regex", "schema": "[A-E][+-]?"})
ask = lambda: llm.generate([[{"role": "user", "content": "Hi"}]] * 5000, max_new_tokens=9)
llm.load()
if sys.argv[2] == "busy":
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(1)
else:
    assert len(llm.generate([[{"role": "user", "content": "Hi"}]])[0][0]) in (1, 2)
print("done")
"""


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_the_process_ends_in_peace(how):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, demo.CHECKPOINT, how], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "done\n") and "Traceback" not in done.stderr
