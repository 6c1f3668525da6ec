"""vLLM with its real engine: trained weights, and random ones that keep to no structure of their own accord.

Where vLLM is not installed, as beside most of what this project needs, only what a block is without it is tested.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator, validate
from pydantic import ValidationError

from llms import Fatal, Rejected, demo, store
from llms.local.automaton import Compiler
from llms.local.generation import TokenSequence
from llms.local.vllm.engine import HiddenStateEngine, TextEngine
from llms.local.vllm.guide import EXTRA_ARGS_KEY, GuideProcessor
from llms.typing import ChatType, Usage
from llms.vllm import vLLM
from tests.support.random_weights import WILD, checkpoint
from tests.support.schemas import GRADE, PATTERNS, SCHEMAS, UNSAYABLE, Coded, Student, User
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(900)  # an engine takes a minute to start

CHAT: ChatType = [{"role": "user", "content": "What's the capital of Spain?"}]
CHATS: list[ChatType] = [
    [{"role": "user", "content": question}]
    for question in (
        "What's the capital of Spain?",
        "Write a short story about a dragon that saves a princess from a tower.",
        "What is 3 + 4?",
        "What color is the sky?",
    )
]
MADRID = "The capital of Spain is Madrid."
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "engine_kwargs": {"kv_cache_memory_bytes": 2**27},
    "max_model_len": 512,
}


@pytest.fixture(scope="module")
def llm() -> vLLM:
    pytest.importorskip("vllm")
    return vLLM(model=str(demo.CHECKPOINT), **SMALL)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    """The demo model with noise for weights, and without its chat template."""
    pytest.importorskip("vllm")
    path = checkpoint(tmp_path_factory.mktemp("random"))
    (path / "chat_template.jinja").unlink()
    return path


@pytest.fixture(scope="module")
def noise(random_weights) -> dict[str, Any]:
    """The settings of a block that has no goodwill of its own."""
    return {"model": str(random_weights), "chat_template": "{{ messages[-1].content }}\n", **SMALL}


def held(structure: Any, settings: dict[str, Any], **fields: Any) -> vLLM:
    structured_output = {"format": "regex", "schema": structure} if isinstance(structure, str) else structure
    return vLLM(**{"structured_output": structured_output, **settings, **fields})


def least(llm: vLLM) -> int:
    """The fewest tokens a text of this structure takes: the number that a refusal names."""
    with pytest.raises(Fatal, match="`max_new_tokens` of") as refusal:
        llm.generate([CHAT], max_new_tokens=1)
    found = re.search(r"of (\d+) or more: 1 is too small", str(refusal.value))
    assert found
    return int(found[1])


# ------------------------------------------------------------------------------------------------------- held to it


@pytest.mark.parametrize("budget", [0, 30, 120])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_matches_its_pattern(pattern, budget, noise):
    llm = held(pattern, noise)
    outputs = llm.generate(CHATS, 2, max_new_tokens=max(budget, least(llm)), seed=budget, **WILD)
    texts = [text for output in outputs for text in output]
    assert len(texts) == 8 and all(re.fullmatch(pattern, text or "") for text in texts), texts
    assert all(output.finish_reasons == ["stop", "stop"] and output.error is None for output in outputs)


def test_the_seeds_pattern_is_always_closed(noise):
    llm = held(GRADE, noise)
    for budget in (14, 20, 50, 100, 200):
        outputs = llm.generate(CHATS * 4, max_new_tokens=budget, **WILD)
        assert all(re.fullmatch(GRADE, output[0] or "") for output in outputs), outputs
        assert max(output.usage.output_tokens for output in outputs) <= budget


@pytest.mark.parametrize("schema", [User, Student, Coded], ids=lambda schema: schema.__name__)
@pytest.mark.parametrize("budget", [0, 150])
def test_every_text_is_valid_json(schema, budget, noise):
    llm = held({"schema": schema}, noise)
    outputs = llm.generate(CHATS * 2, max_new_tokens=max(budget, least(llm)), seed=budget, **WILD)
    for output in outputs:
        assert output.error is None, output.error
        validate(json.loads(output[0] or ""), schema.model_json_schema())


@pytest.mark.parametrize("name", ["patterns", "recursive", "formats", "numbers", "unicode keys"])
def test_nasty_schemas_are_kept_to_at_once(name, noise):
    llm = held({"format": "json", "schema": SCHEMAS[name]}, noise)
    for budget in (least(llm), 120):
        for output in llm.generate(CHATS, max_new_tokens=budget, seed=budget, **WILD):
            assert output.error is None and output.attempts == 1
            validate(json.loads(output[0] or ""), SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER)


def test_what_no_automaton_can_say_is_never_passed_silently(noise):
    schema = UNSAYABLE["multiple"]
    outputs = held({"schema": schema}, noise, max_schema_retries=1).generate(CHATS * 4, max_new_tokens=30, **WILD)
    failed = [output for output in outputs if output.error]
    assert failed and all(output == [None] and output.attempts == 2 for output in failed)
    assert all(isinstance(output.error, Rejected) and "multiple of 3" in str(output.error) for output in failed)
    assert all(json.loads(output[0] or "")["n"] % 3 == 0 for output in outputs if not output.error)


def test_a_greedy_text_that_missed_is_not_the_same_again(noise):
    schema = UNSAYABLE["multiple"]
    outputs = held({"schema": schema}, noise, max_schema_retries=3).generate(CHATS, max_new_tokens=30, temperature=0)
    assert {output.attempts for output in outputs} > {1} or not any(output.error for output in outputs)


def test_a_greedy_answer_is_the_same_however_often_it_was_written(noise):
    def ask() -> list[Any]:
        llm = held({"schema": UNSAYABLE["multiple"]}, noise, max_schema_retries=3)
        outputs = llm.generate(CHATS * 2, 2, max_new_tokens=30, temperature=0)
        return [(list(output), output.attempts, str(output.error)) for output in outputs]

    first = ask()
    assert max(attempts for _, attempts, _ in first) > 1 and ask() == first


def test_texts_of_all_kinds_are_written_side_by_side(noise):
    free, digits, letters = vLLM(**noise), held(r"\d{1,40}", noise), held("[a-z]{1,60}", noise)
    engine = free._engine()
    automata = [each._automaton(engine) for each in (free, digits, letters)]
    (prompt,) = engine.tokenize([CHAT], noise["chat_template"])
    texts = [
        TokenSequence(prompt, 3 + at % 17, at, automaton=automata[at % 3]) for at in range(60)
    ]  # they come, go and move
    engine.write(texts, dict(WILD))
    for at, text in enumerate(texts):
        assert at % 3 == 0 or re.fullmatch((r"\d{1,40}", "[a-z]{1,60}")[at % 3 - 1], text.text), (at, text)
        assert 0 < len(text.tokens) <= text.max_tokens


def test_what_breaks_the_guide_is_reported(noise):
    llm = held("[ab]{3}", noise, max_schema_retries=0)
    for extra in ({"min_tokens": 20}, {"allowed_token_ids": [40, 41]}):
        outputs = llm.generate(CHATS, max_new_tokens=30, extra_sampling_params=extra, **WILD)
        assert all(re.fullmatch("[ab]{3}", output[0]) if output[0] else output.error for output in outputs)
    assert all(re.fullmatch("[ab]{3}", output[0] or "") for output in llm.generate(CHATS, **WILD))  # it lives on


def test_a_structure_per_chat(llm):
    outputs = llm.generate_outputs(
        [(CHAT, {"format": "regex", "schema": "[0-9]{2}"}), CHAT, (CHAT, {"schema": User}), (CHAT, "(?=a)b")],
        max_new_tokens=200,
        temperature=0,
    )
    assert re.fullmatch("[0-9]{2}", outputs[0][0] or "") and outputs[1] == [MADRID]
    assert json.loads(outputs[2][0] or "").keys() == {"name", "last_name", "id"}
    assert isinstance(outputs[3].error, Rejected)


def test_structures_of_their_own_are_written_in_one_batch(llm, monkeypatch):
    batches: list[int] = []
    write = TextEngine.write

    def counted(engine: TextEngine, texts: list[TokenSequence], options: dict[str, Any]) -> None:
        batches.append(len(texts))
        write(engine, texts, options)

    monkeypatch.setattr(TextEngine, "write", counted)
    digits, user = llm.with_structured_output({"schema": "[0-9]{2}"}), llm.with_structured_output({"schema": User})
    requests = [(digits, CHAT), (llm, CHAT), (user, CHAT), (digits, CHATS[1])]
    outputs = llm.generate_together(requests, 2, max_new_tokens=200, temperature=0)
    assert batches == [8]
    assert outputs[1] == [MADRID] * 2 and all(re.fullmatch("[0-9]{2}", text or "") for text in outputs[0] + outputs[3])
    assert all(json.loads(text or "").keys() == {"name", "last_name", "id"} for text in outputs[2])


@pytest.mark.parametrize("options", [{"max_new_tokens": 12}, {"stop": "!"}, {"stop_token_ids": [2000]}], ids=str)
def test_a_structure_that_cannot_be_had_costs_its_own_rows_only(options, llm):
    long = llm.with_structured_output({"schema": "[0-9]{40}"})
    refused, answered = llm.generate_together([(long, CHAT), (llm, CHAT)], temperature=0, **options)
    assert answered == [MADRID] and not answered.error
    assert refused == [None] and isinstance(refused.error, Rejected) and "`structured_output`" in str(refused.error)
    with pytest.raises(Fatal, match="`structured_output`"):  # what all are held to is for all
        long.generate([CHAT], **options)


def test_another_structure_at_the_same_address_has_masks_of_its_own(tmp_path):
    torch = pytest.importorskip("torch")
    compiler = Compiler({bytes([byte]): [byte] for byte in range(256)}, 256)
    guide = GuideProcessor(None, "cpu", False)
    for at in range(400):  # more than are kept: each that is let go of leaves its address to another
        letters = "acegikmoqs"[at % 10] + "bdfhjln"[at % 7]
        file = tmp_path / str(at)
        file.write_bytes(pickle.dumps(compiler.compile({"format": "regex", "schema": f"[{letters}]"})))
        params = SimpleNamespace(
            max_tokens=4, extra_args={EXTRA_ARGS_KEY: {"automaton": str(file), "end_tokens": [256]}}
        )
        guide.update_state(SimpleNamespace(removed=[0], added=[(0, params, None, [])], moved=[]))
        scores = guide.apply(torch.zeros(1, 257))
        assert {chr(token) for token in scores[0].isfinite().nonzero().flatten().tolist()} == set(letters)


def test_what_excludes_a_structure_is_named(noise):
    llm = held(GRADE, noise)
    for options in ({"stop": "x"}, {"stop_token_ids": [3]}):
        with pytest.raises(Fatal, match="exclude each other"):
            llm.generate([CHAT], **options)


# ----------------------------------------------------------------------------------------------------------- chats


def test_answers_with_usage_and_reasons(llm):
    outputs = llm.generate([CHAT, CHAT], 2, temperature=0)
    assert outputs == [[MADRID] * 2] * 2
    assert outputs[0].usage == Usage(18, 18) and outputs[0].finish_reasons == ["stop", "stop"]
    cut = llm.generate([CHAT], max_new_tokens=2, temperature=0)[0]
    assert cut == ["The capital"] and cut.finish_reasons == ["length"]
    assert llm.cost(outputs[0].usage) == 0.0


def test_says_how_likely_its_tokens_were(llm):
    output = llm.generate([CHAT], 2, temperature=0, logprobs=2)[0]
    for places in output.logprobs:
        assert places and len(places) == 9 and places[0][0]["token"] == "The"
        assert all(len(place) == 2 and place[0]["logprob"] >= place[1]["logprob"] for place in places)
    assert llm.generate([CHAT])[0].logprobs == [None]


def test_stops_where_it_is_told(llm):
    assert llm.generate([CHAT], temperature=0, stop=" Spain")[0] == ["The capital of"]
    token = llm._engine()._llm.get_tokenizer()(" is")["input_ids"][-1]
    assert (llm.generate([CHAT], temperature=0, stop_token_ids=[token])[0][0] or "").startswith("The capital of Spain")


def test_a_seed_makes_it_repeatable(llm):
    def ask(chats, **options):
        return [list(output) for output in llm.generate(chats, 2, max_new_tokens=30, **WILD, **options)]

    one = ask(CHATS, seed=7)
    assert ask(CHATS, seed=7) == one and ask(CHATS[1:2], seed=7) == one[1:2]
    assert ask(CHATS, seed=8) != one and one[1][0] != one[1][1]
    assert ask(CHATS) != ask(CHATS)
    seeded = vLLM(**{**llm.model_dump(include=set(SMALL)), "model": llm.model, "seed": 7})
    assert seeded._engine() is llm._engine()
    assert [list(output) for output in seeded.generate(CHATS, 2, max_new_tokens=30, **WILD)] == one


def test_a_chat_that_cannot_be_read_fails_alone(llm):
    parts = [{"type": "text", "text": "What's the capital "}, {"type": "text", "text": "of Spain?"}]
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    chats: list[ChatType] = [
        [{"role": "user", "content": "a dragon " * 400}],
        [{"role": "user", "content": parts}],
        [{"role": "user", "content": [image]}],
    ]
    long, read, refused = llm.generate(chats, temperature=0)
    assert read == [MADRID]
    assert isinstance(long.error, Rejected) and "512" in str(long.error)
    assert isinstance(refused.error, Rejected) and "image_url" in str(refused.error)
    nearly: ChatType = [{"role": "user", "content": "<|im_end|>" * 490}]
    first, second = held(r"\d{20}", SMALL, model=llm.model).generate([nearly, CHAT])
    assert "leaves 12 of the 512" in str(first.error) and second.error is None


def test_a_template_may_refuse_a_chat(llm):
    template = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn, please') }}{% endif %}"
        + (demo.CHECKPOINT / "chat_template.jinja").read_text()
    )
    picky = vLLM(model=llm.model, chat_template=template, **SMALL)
    answered, refused = picky.generate([CHAT, CHAT * 2], temperature=0)
    assert answered == [MADRID] and picky._engine() is llm._engine()
    assert isinstance(refused.error, Rejected) and "one turn, please" in str(refused.error)


def test_without_a_template_says_what_to_set(random_weights):
    with pytest.raises(Fatal, match="has no chat template: set `chat_template`"):
        vLLM(model=str(random_weights), **SMALL).generate([CHAT])


def test_parameters_that_vllm_does_not_know_are_named(llm):
    with pytest.raises(Fatal, match="did you mean `max_new_tokens`"):
        llm.generate([CHAT], max_tokens=3)
    for extra in ({"warmth": 3}, {"top_p": 7}, {"logprobs": 3000}):
        with pytest.raises(Fatal, match="warmth|top_p|logprobs"):
            llm.generate([CHAT], extra_sampling_params=extra)
    assert llm.generate([CHAT], extra_sampling_params={"ignore_eos": True}, max_new_tokens=40)[0].finish_reasons == [
        "length"
    ]


def test_threads_share_one_engine(llm):
    found: list[Any] = []

    def ask() -> None:
        found.extend(vLLM(model=llm.model, **SMALL).generate([CHAT] * 4, temperature=0))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[MADRID]] * 16


def test_hidden_states_are_those_of_transformers_and_the_engine_ends(llm):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    psutil = pytest.importorskip("psutil")
    reading = vLLM(model=llm.model, **SMALL, tokenizer=llm.model)  # an engine of its own, to be ended
    before = set(psutil.Process().children(recursive=True))
    states = reading.get_last_hidden_states(CHATS)
    started = {each for each in psutil.Process().children(recursive=True) if each not in before}
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT, dtype=torch.float32)
    for chat, state in zip(CHATS, states, strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            own = model(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
        assert state.shape == own.shape and state.dtype == np.float32
        assert np.abs(state - own).max() < 1e-3
    with pytest.raises(Rejected, match="512"):
        reading.get_last_hidden_state([[{"role": "user", "content": "a dragon " * 400}]])
    engine = weakref.ref(reading._hidden_state_engine())
    reading.unload()
    assert engine() is None
    assert started
    wait_until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in started), 60)


# ------------------------------------------------------------------------------------------------- coming and going


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "./nowhere"}, r"finds no `\./nowhere`: `model` is the path of"),
        ({"model": "/nowhere/at/all"}, "finds no `/nowhere/at/all`"),
    ],
    ids=str,
)
def test_a_model_that_is_not_there_is_named(fields, why):
    for ask in (lambda llm: llm.load(), lambda llm: llm.generate_outputs([CHAT])):
        with pytest.raises(Fatal, match=why):
            ask(vLLM(**fields))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"engine_kwargs": {"warmth": 3}}, "cannot load .*warmth"),
        ({"quantization": "magic"}, "cannot load .*magic"),
        ({"max_model_len": 2**20}, "cannot load .*max_model_len"),
        ({"cuda_devices": [76, 77]}, r"`cuda_devices=\[76, 77\]`: this process sees \d+ GPUs with `CUDA_VISIBLE_DEV"),
        ({"model": "."}, "cannot load"),
        ({"engine_kwargs": {"kv_cache_memory_bytes": 2**44}}, "cannot start .*no memory, lower `gpu_memory_util"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_named(fields, why, monkeypatch):
    pytest.importorskip("vllm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(Fatal, match=why):
        vLLM(**{"model": str(demo.CHECKPOINT), **SMALL, **fields}).load()


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(Fatal, match=r"`vllm` package, in an environment of its own: `uv pip install --overrides"):
        vLLM(model=str(demo.CHECKPOINT)).load()


def test_the_cure_names_files_that_are_there():
    from llms.local.vllm.launch import INSTALL_COMMAND

    files = re.findall(r"\S+\.txt", INSTALL_COMMAND)
    assert len(files) == 2 and all((Path(__file__).parents[2] / file).is_file() for file in files)


def test_hidden_states_are_readied_without_the_engine_for_texts(monkeypatch):
    started: list[type] = []
    monkeypatch.setattr("llms.vllm.start_engine", lambda llm, kind: started.append(kind) or kind)
    llm = vLLM(model="no-such-model-of-hidden-states")
    try:
        llm.prepare_hidden_states()
        llm.prepare_hidden_states()
        assert started == [HiddenStateEngine]
        llm.load()
        assert started == [HiddenStateEngine, TextEngine]
    finally:
        llm.unload()


@pytest.mark.parametrize("devices", [[-1], [0, -2], [], "all"], ids=str)
def test_gpus_are_counted_from_0_and_one_at_least(devices):
    with pytest.raises(ValidationError, match="cuda_devices"):
        vLLM(model="m", cuda_devices=devices)


def test_is_plain_data():
    llm = vLLM(model="m", token="hf_secret", structured_output={"schema": User})
    assert pickle.loads(pickle.dumps(llm)) == llm and llm.model_name == "m"
    assert "hf_secret" not in repr(llm) + llm.model_dump_json() + str(llm._engine_key())
    assert (
        llm._engine_key() == vLLM(model="m", seed=3)._engine_key() != vLLM(model="m", enforce_eager=True)._engine_key()
    )
    with pytest.raises(ValidationError, match="did you mean `gpu_memory_utilization`"):
        vLLM(model="m", gpu_memory_utilisation=0.5)
    with pytest.raises(Fatal, match="temperature"):
        llm.options({"temperature": 3})


@pytest.mark.parametrize("field", ["model", "tokenizer"])
@pytest.mark.parametrize("name", ["{home}/weights", "~/weights"])
def test_weights_that_were_trained_again_are_asked_again(field, name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()

    def key(words: str) -> str:
        file = tmp_path / "weights" / "model.safetensors"
        file.write_text(words)
        os.utime(file, (ord(words[0]), ord(words[0])))
        return store.key_of(vLLM(**{"model": "m", field: name.format(home=tmp_path)}), CHAT, {}, 0)

    first = key("first")
    assert key("first") == first != key("again")  # of the same size, in the same folder
    template = vLLM(model="m", chat_template="{{ messages }}" * 1000)  # too long for the name of a file
    assert store.key_of(template, CHAT, {}, 0) != first


@pytest.mark.slow
def test_nothing_of_it_is_imported_with_a_block():
    code = "import sys; from llms.vllm import vLLM; vLLM(model='m'); print({'vllm', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_ends_with_the_program_that_asked_it():
    pytest.importorskip("vllm")
    code = (
        "from tempfile import TemporaryDirectory\n"
        "folder = TemporaryDirectory()\n"  # first of what is cleaned up at the end, so the last of it
        "from llms.vllm import vLLM\n"
        f"llm = vLLM(model={str(demo.CHECKPOINT)!r}, **{SMALL})\n"
        f"print(llm.generate([{CHAT}])[0][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.endswith(f"{MADRID}\n"), done.stderr


@pytest.mark.usefixtures("prefect_server")
def test_is_saved_and_loaded():
    vLLM(model="m", cuda_devices=[0, 1], engine_kwargs={"swap": 1}).save("test-vllm", overwrite=True)
    assert vLLM.load("test-vllm").cuda_devices == [0, 1]
