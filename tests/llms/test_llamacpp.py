"""llama.cpp in this process: real weights, and random ones that keep to no structure of their own accord."""

import gc
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator, validate
from pydantic import ValidationError

pytest.importorskip("llama_cpp")

from llms import Fatal, LlamaCppLLM, LlamaServerLLM, Rejected, demo, local, store
from llms.clients.chat_template import render_chat
from llms.local import automaton, automaton_cache
from llms.local.llama_cpp.engine import LlamaEngine
from llms.local.token_trie import TokenTrie
from llms.typing import ChatType, StructuredOutputType, Usage
from tests.support.random_weights import WILD, gguf_file
from tests.support.schemas import PATTERNS, SCHEMAS, UNSAYABLE, Coded, Course, Student, User, record

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
] * 4


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    """The demo model with noise for weights."""
    pytest.importorskip("gguf")
    return gguf_file(tmp_path_factory.mktemp("random") / "random.gguf")


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> Path:
    """Noise for weights again, with the other kind of tokenizer, a start token, and no chat template."""
    gguf = pytest.importorskip("gguf")
    words = ["▁", "▁the", "▁dragon", "na", "me", '":', '▁"', "},", "é", "日", "▁1", "99"]
    letters = [chr(at) for at in range(33, 127)]
    special, raw = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *raw, *words, *letters]
    kind = gguf.TokenType
    path = tmp_path_factory.mktemp("sentencepiece") / "spm.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(at) for at in range(len(tokens) - 259)])
    writer.add_token_types(
        [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL] * (len(tokens) - 259)
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    rng = np.random.default_rng(0)
    square = [
        f"blk.0.{name}" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    for name, rows in {"token_embd": len(tokens), "output": len(tokens), **dict.fromkeys(square, 32)}.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.1, (rows, 32)).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=["demo", "random_weights", "sentencepiece"])
def model_path(request) -> Path:
    return demo.GGUF if request.param == "demo" else request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def llm() -> LlamaCppLLM:
    return block()


def block(model_path: Path = demo.GGUF, **fields: Any) -> LlamaCppLLM:
    """On one thread: the model is small, and the machine may have others to serve."""
    return LlamaCppLLM(model_path=model_path, n_threads=1, **fields)


def least(llm: LlamaCppLLM) -> int:
    """The fewest tokens a text of this structure takes: the number that a refusal names."""
    with pytest.raises(Fatal, match="`max_new_tokens` of") as refusal:
        llm.generate([CHAT], max_new_tokens=1)
    found = re.search(r"of (\d+) or more: 1 is too small", str(refusal.value))
    assert found
    return int(found[1])


# ------------------------------------------------------------------------------------------------- the seed's own words


SEED = [
    """
from pydantic import BaseModel

class User(BaseModel):
    name: str
    last_name: str
    id: int
""",
    """
from llms import LlamaCppLLM

llm = LlamaCppLLM(
    model_path=model_path,  # (1): the document has a download here, and a comma behind the `#`
    n_gpu_layers=-1,
    n_ctx=1024,
    structured_output={"format": "json", "schema": User},
)
llm.load()
""",
    """
import json

result = llm.generate(
    [[{"role": "user", "content": "Create a user profile for the following marathon"}]],
    max_new_tokens=50
)

json.loads(result[0][0])
# {'name': 'Kathy', 'last_name': 'Smith', 'id': 4539210}
""",
    r"""
pattern = r"<name>(.*?)</name>.*?<grade>(.*?)</grade>"

llm=LlamaCppLLM(
    model_path=model_path,
    n_gpu_layers=-1,
    n_ctx=1024,
    structured_output={"format": "regex", "schema": pattern},
)
llm.load()

result = llm.generate(
    [[
        {"role": "system", "content": "You are Simpsons' fans who loves assigning grades from A to E, where A is the best and E is the worst."},
        {"role": "user", "content": "What's up with Homer Simpson?"}
    ]],
    max_new_tokens=200
)
""",  # noqa: E501
    """
import re
match = re.search(pattern, result[0][0])

if match:
    name = match.group(1)
    grade = match.group(2)
    print(f"Name: {name}, Grade: {grade}")
# Name: Homer Simpson, Grade: C+
""",
]


def test_the_document(capsys):
    """A profile that parses, and a grade for Homer Simpson."""
    names: dict[str, Any] = {"model_path": str(demo.GGUF)}
    for snippet in SEED[:3]:
        exec(snippet, names)
    profile = User.model_validate_json(names["result"][0][0])
    assert profile.name and profile.last_name and profile.id
    for snippet in SEED[3:]:
        exec(snippet, names)
    assert capsys.readouterr().out.startswith("Name: Homer Simpson, Grade: ")


# ------------------------------------------------------------------------------------------------------- held to it


@pytest.mark.parametrize("budget", [0, 30, 120])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.filterwarnings("ignore:Possible nested set")  # Python's own, about the plain bracket in a class
def test_every_text_matches_its_pattern(pattern, budget, model_path):
    llm = block(model_path=model_path, structured_output={"format": "regex", "schema": pattern})
    outputs = llm.generate(CHATS[:6], 2, max_new_tokens=max(budget, least(llm)), seed=budget, **WILD)
    texts = [text for output in outputs for text in output]
    assert len(texts) == 12 and all(re.fullmatch(pattern, text or "") for text in texts), texts
    assert {output.error for output in outputs} == {None} and {output.attempts for output in outputs} == {1}
    assert {reason for output in outputs for reason in output.finish_reasons} == {"stop"}


@pytest.mark.parametrize("budget", [0, 30, 50, 120])
@pytest.mark.parametrize("shape", [User, Course, Student, Coded])
def test_every_text_keeps_to_its_schema(shape, budget, model_path):
    llm = block(model_path=model_path, structured_output={"format": "json", "schema": shape})
    budget = max(budget, least(llm))
    outputs = llm.generate(CHATS[:6], 2, max_new_tokens=budget, seed=budget, **WILD)
    for output in outputs:
        assert output.error is None and output.finish_reasons == ["stop"] * 2
        for text in output:
            shape.model_validate_json(text or "")


def test_a_schema_of_ones_own(model_path):
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
    llm = block(model_path=model_path, structured_output={"format": "json", "schema": schema})
    for output in llm.generate(CHATS, max_new_tokens=40, **WILD):
        assert output.error is None
        validate(json.loads(output[0] or ""), schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_weights_keep_to_every_schema_at_once(name, random_weights):
    llm = block(model_path=random_weights, structured_output={"format": "json", "schema": SCHEMAS[name]})
    for budget in (least(llm), 200):
        for output in llm.generate(CHATS[:6], max_new_tokens=budget, seed=budget, **WILD):
            assert output.error is None and output.attempts == 1 and output.usage.output_tokens <= budget
            validate(json.loads(output[0] or ""), SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER)


def test_what_no_automaton_can_say_is_checked_and_asked_again(random_weights):
    schema = UNSAYABLE["multiple"]
    llm = block(
        model_path=random_weights, structured_output={"format": "json", "schema": schema}, max_schema_retries=12
    )
    outputs = llm.generate(CHATS, max_new_tokens=8, seed=1, **WILD)
    assert {output.attempts for output in outputs} > {1}
    for output in outputs:
        assert output.error is None and json.loads(output[0] or "")["n"] % 3 == 0
    assert llm.generate(CHATS, max_new_tokens=8, seed=1, **WILD) == outputs
    assert not any(output.error for output in llm.generate(CHATS, max_new_tokens=8, temperature=0))


def test_what_never_comes_right_costs_its_own_chat_only():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "not": {"type": "integer"}}}, "required": ["n"]}
    llm = block(structured_output={"format": "json", "schema": schema})
    (output,) = llm.generate([CHAT], 2, max_new_tokens=8)
    assert output == [None, None] and output.finish_reasons == ["error", "error"] and output.attempts == 5
    assert isinstance(output.error, Rejected) and "`$.n`" in str(output.error) and output.usage.output_tokens > 10


def test_a_budget_that_is_too_small_is_refused_with_the_number_it_needs():
    llm = block(structured_output={"schema": User})
    needed = least(llm)
    with pytest.raises(Fatal, match=f"of {needed} or more"):
        llm.generate_outputs([CHAT], max_new_tokens=needed - 1)
    User.model_validate_json(llm.generate([CHAT], max_new_tokens=needed)[0][0] or "")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [(r"(a|b)\1", "a backreference"), ("(?P<x>a)(?P=x)", "a backreference"), ("(a)?(?(1)b|c)", "a condition")],
)
def test_a_pattern_that_cannot_be_kept_is_refused_by_name(pattern, why):
    with pytest.raises(Fatal, match=f"`structured_output`.*{why}"):
        block(structured_output={"format": "regex", "schema": pattern}).load()


@pytest.mark.parametrize("pattern", ["(?=a)ab", "a(?!b)", "(?<!a)b", r"(a|b)\1", r"\bword", "a$|^b", "(?!^[-+.]*$)"])
def test_a_pattern_in_a_schema_that_no_automaton_can_say_is_checked_afterwards(pattern, random_weights):
    schema = record(kind={"const": "x"}, code={"type": "string", "pattern": pattern, "maxLength": 6})
    llm = block(model_path=random_weights, structured_output={"format": "json", "schema": schema})
    outputs = llm.generate(CHATS[:8], max_new_tokens=40, seed=1, **WILD)
    assert len(outputs) == 8
    for output in outputs:
        assert (output[0] is None) == isinstance(output.error, Rejected)
        assert (
            "`$.code`" in str(output.error) if output.error else re.search(pattern, json.loads(output[0] or "")["code"])
        )


def test_a_decimal_of_pydantic_may_be_a_number_or_a_text(random_weights):
    """As pydantic 2.13 writes it."""
    text = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
    schema = record(price={"anyOf": [{"type": "number"}, text]})
    llm = block(model_path=random_weights, structured_output={"format": "json", "schema": schema})
    outputs = llm.generate(CHATS, max_new_tokens=30, seed=2, **WILD)
    assert any(output[0] for output in outputs)
    for output in outputs:
        assert output.error is None or isinstance(output.error, Rejected)
        if output[0]:
            validate(json.loads(output[0]), schema)


def test_what_is_no_pattern_at_all_is_refused():
    with pytest.raises(Fatal, match=r"`a\(` is not a regular expression"):
        block(structured_output={"format": "regex", "schema": "a("}).load()
    with pytest.raises(ValidationError, match=r"'a\(' is not a 'regex'"):
        block(structured_output={"schema": record(code={"type": "string", "pattern": "a("})})


def test_a_schema_that_cannot_be_compiled_is_refused():
    with pytest.raises(Fatal, match="`structured_output` cannot be compiled: nothing is valid"):
        block(
            model_path=demo.GGUF, structured_output={"schema": {"type": "integer", "minimum": 5, "maximum": 3}}
        ).load()


def test_a_structure_has_an_end_of_its_own():
    llm = block(structured_output={"schema": User})
    with pytest.raises(Fatal, match="`stop` and `structured_output` exclude each other"):
        llm.generate([CHAT], stop="}")


# ------------------------------------------------------------------------------------------------------ compiled once


PIECES: dict[bytes, list[int]] = {bytes([at]): [at] for at in range(32, 127)} | {b"name": [130, 131], b'": "': [132]}
HELD: StructuredOutputType = {"format": "json", "schema": User.model_json_schema()}


@pytest.fixture
def compilations(monkeypatch) -> list[str]:
    """Regular expressions that are compiled, and not read from disk."""
    found: list[str] = []
    compile = automaton.compile_regex
    monkeypatch.setattr(automaton, "compile_regex", lambda regex, *more: found.append(regex) or compile(regex, *more))
    return found


def texts_of(machine: automaton.Automaton) -> Any:
    """All that decides about texts."""
    states = range(len(machine._tokens))
    return (
        machine.start_state,
        machine.accepting_states,
        machine.min_tokens,
        [machine.allowed_tokens(at, 9).tolist() for at in states],
    )


def test_a_second_process_compiles_nothing(compilations):
    first = automaton.Compiler(PIECES, 200).compile(HELD)
    again = automaton.Compiler(dict(reversed(PIECES.items())), 200)
    assert texts_of(again.compile(HELD)) == texts_of(first) and again.compile(HELD) is again.compile(HELD)
    assert len(compilations) == 1
    automaton.Compiler({**PIECES, b"x": [140]}, 200).compile(HELD)
    automaton.Compiler(PIECES, 201).compile(HELD)
    automaton.Compiler(PIECES, 200).compile({"format": "regex", "schema": "[a-z]{2,5}"})
    assert len(compilations) == 4


@pytest.mark.parametrize("regex", ["", "a|ab", "a.*b", "[01]+(b[01]+)?", "(ab)*", "a{2,4}|b", "[ab][^b]*"])
def test_the_tokens_spell_all_texts_of_a_pattern_and_no_others(regex):
    pieces = {bytes([each]): [each] for each in range(256)} | {b"ab": [300, 301], b"b0": [302], "é".encode(): [303]}
    machine = automaton.Automaton(automaton.compile_regex(regex, TokenTrie(pieces)))

    def writes(*tokens: int) -> bool:
        state = machine.start_state
        for token in tokens:
            if token not in machine.allowed_tokens(state, automaton.UNREACHABLE):
                return False
            state = machine.next_state(state, token)
        return state in machine.accepting_states

    for size in range(5):
        for text in map("".join, itertools.product("ab01é", repeat=size)):
            assert writes(*text.encode()) == bool(re.fullmatch(regex, text)), text
    assert writes(300) == writes(301) == bool(re.fullmatch(regex, "ab"))
    assert writes(97, 302) == bool(re.fullmatch(regex, "ab0")) and writes(97, 303) == bool(re.fullmatch(regex, "aé"))


def test_another_version_of_the_compiler_compiles_again(compilations, monkeypatch):
    for number in ("0.2.14", "0.2.15", "0.2.14"):
        monkeypatch.setattr(automaton_cache, "version", lambda package, number=number: number)
        automaton.Compiler(PIECES, 200).compile(HELD)
    assert len(compilations) == 2


@pytest.mark.parametrize("damage", [b"", b"not an archive", 0.5, 0.95, "other arrays"], ids=repr)
def test_a_damaged_file_is_put_right(damage, compilations):
    expected = texts_of(automaton.Compiler(PIECES, 200).compile(HELD))
    (file,) = automaton_cache.cache_folder().iterdir()
    whole = file.read_bytes()
    match damage:
        case float():
            file.write_bytes(whole[: int(len(whole) * damage)])
        case str():
            automaton_cache.write(file.name, {"start": np.zeros(1, np.int32)})
        case _:
            file.write_bytes(damage)
    for _ in range(2):
        assert texts_of(automaton.Compiler(PIECES, 200).compile(HELD)) == expected
    assert len(compilations) == 2 and file.read_bytes() == whole


def test_without_room_on_disk_it_is_compiled_each_time(compilations, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "file"))
    for _ in range(2):
        automaton.Compiler(PIECES, 200).compile(HELD)
    assert len(compilations) == 2


def test_what_was_not_read_for_the_longest_time_makes_room(monkeypatch):
    monkeypatch.setattr(automaton_cache, "MAX_CACHE_BYTES", 2000)
    for at in range(5):
        automaton_cache.write(str(at), {"a": np.zeros(100, np.int32)})
        os.utime(automaton_cache.cache_folder() / str(at), (at, at))
    assert sorted(each.name for each in automaton_cache.cache_folder().iterdir())[-1] == "4"
    assert automaton_cache.read("4") is not None and automaton_cache.read("0") is None


WRITERS = """
import sys
import numpy as np
from llms.local import automaton_cache
for at in range(200):
    automaton_cache.write("one", {"a": np.full(5000, at, np.int32)})
    found = automaton_cache.read("one")
    assert found is not None and len(set(found["a"].tolist())) == 1
"""


def test_processes_that_write_the_same_do_not_disturb_each_other():
    writers = [subprocess.Popen([sys.executable, "-c", WRITERS]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [each.name for each in automaton_cache.cache_folder().iterdir()] == ["one"]


# -------------------------------------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("structure", [None, {"format": "json", "schema": User.model_json_schema()}], ids=bool)
def test_greedy_texts_are_the_same_alone_and_together(structure):
    alone, together = (
        block(n_parallel=parallel, n_batch=batch, structured_output=structure)
        for parallel, batch in ((1, 512), (8, 64))
    )
    options = {"temperature": 0, "max_new_tokens": 60}
    expected = [alone.generate([chat], **options)[0] for chat in CHATS]
    assert together.generate(CHATS, **options) == expected == alone.generate(CHATS, **options)


def test_chats_with_structures_of_their_own_are_one_batch(llm, monkeypatch):
    calls: list[int] = []
    write = LlamaEngine.write
    monkeypatch.setattr(
        LlamaEngine, "write", lambda engine, texts, options: calls.append(len(texts)) or write(engine, texts, options)
    )
    schemas = [record(kind={"const": f"kind {at}"}, n={"type": "integer"}) for at in range(8)]
    requests = [
        (llm.with_structured_output({"schema": schema}), chat) for schema, chat in zip(schemas, CHATS, strict=False)
    ]
    options = {"temperature": 0, "max_new_tokens": 30}
    together = llm.generate_together([*requests, (llm, CHAT)], **options)
    assert calls == [9]
    for (held, chat), schema, output in zip(requests, schemas, together, strict=False):
        validate(json.loads(output[0] or ""), schema)
        assert held.generate([chat], **options) == [output]
    assert together[-1] == llm.generate([CHAT], **options)[0]


def test_what_a_structure_of_ones_own_makes_impossible_costs_its_own_chats_only(llm):
    long, short = (llm.with_structured_output({"schema": rf"a{{{size}}}"}) for size in (400, 3))
    refused, answered = llm.generate_together([(long, CHAT), (short, CHAT)], max_new_tokens=9)
    assert answered == ["aaa"] and isinstance(refused.error, Rejected)
    assert "`structured_output` needs `max_new_tokens` of" in str(refused.error)
    with pytest.raises(Fatal, match="`structured_output` needs `max_new_tokens` of"):
        long.generate_together([(long, CHAT), (short, CHAT)], max_new_tokens=9)


def test_a_seed_repeats_whatever_else_is_asked(llm):
    first = llm.generate(CHATS, 2, seed=7, temperature=1.5, max_new_tokens=40)
    assert llm.generate(CHATS, 2, seed=7, temperature=1.5, max_new_tokens=40) == first
    assert llm.generate(CHATS[1:2], 2, seed=7, temperature=1.5, max_new_tokens=40) == first[1:2]
    assert llm.generate(CHATS, 2, seed=8, temperature=1.5, max_new_tokens=40) != first
    assert first[1][0] != first[1][1]
    assert block(seed=7).generate(CHATS[1:2], 2, temperature=1.5, max_new_tokens=40) == first[1:2]


def test_without_a_seed_texts_differ(llm):
    texts = {llm.generate(CHATS[1:2], temperature=1.5, max_new_tokens=40)[0][0] for _ in range(3)}
    assert len(texts) == 3


def test_from_many_threads(llm):
    expected = llm.generate(CHATS, temperature=0, max_new_tokens=30)
    found: dict[int, Any] = {}
    ask = lambda at: found.update({at: llm.generate([CHATS[at]], temperature=0, max_new_tokens=30)[0]})  # noqa: E731
    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(CHATS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(CHATS))] == expected


def test_no_chats_and_no_generations(llm):
    assert llm.generate([]) == [] == llm.get_last_hidden_state([])


# ------------------------------------------------------------------------------------------------------- one at a time


def test_a_start_token_is_there_once(sentencepiece):
    engine = block(model_path=sentencepiece)._engine()
    assert engine.chat_template is None and engine.tokenize("<s>the dragon") == engine.tokenize("the dragon")
    assert engine.tokenize("the dragon")[0] == 1 and engine.tokenize("the dragon").count(1) == 1


def test_answers_and_says_what_it_cost(llm):
    (output,) = llm.generate([CHAT], 2, temperature=0)
    assert output == ["The capital of Spain is Madrid."] * 2
    assert output.finish_reasons == ["stop", "stop"] and output.error is None and output.seconds > 0
    assert output.usage == Usage(input_tokens=18, output_tokens=18)


def test_a_text_is_cut_where_it_was_asked_to(llm):
    (cut,) = llm.generate([CHAT], temperature=0, max_new_tokens=3)
    assert cut.finish_reasons == ["length"] and cut.usage.output_tokens == 3
    for stop in (" is", ["nowhere", "Spain is"], [" is Madrid", " is"]):
        (stopped,) = llm.generate([CHAT], temperature=0, stop=stop)
        assert stopped.finish_reasons == ["stop"] and (stopped[0] or "").rstrip() in "The capital of Spain"


def test_sampling_options_do_what_they_say(llm):
    story = CHATS[1:2]
    free = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_new_tokens": 30, "seed": 1}
    greedy = llm.generate(story, temperature=0, max_new_tokens=30)
    assert llm.generate(story, **free) != greedy
    for narrow in ({"top_k": 1}, {"top_p": 0.001}, {"min_p": 1.0}):
        assert llm.generate(story, **free | narrow) == greedy
    count = {"temperature": 0, "max_new_tokens": 60}
    tokens = lambda text: re.findall(r"\w+", text[0][0] or "")  # noqa: E731
    plain = tokens(llm.generate(story, **count))
    for against in ({"repetition_penalty": 1.5}, {"frequency_penalty": 2.0}, {"presence_penalty": 3.0}):
        said = tokens(llm.generate(story, **count | against))
        assert len(set(said)) / len(said) > len(set(plain)) / len(plain)


def test_a_chat_that_is_too_long_costs_its_own_answer_only(llm):
    outputs = llm.generate([CHAT, CHAT * 200, CHAT], temperature=0)
    assert outputs[0] == outputs[2] == ["The capital of Spain is Madrid."]
    assert outputs[1] == [None] and isinstance(outputs[1].error, Rejected) and "n_ctx=1024" in str(outputs[1].error)
    with pytest.raises(Rejected, match="n_ctx=1024"):
        llm.get_last_hidden_state([CHAT * 200])


def test_a_chat_that_leaves_no_room_for_its_structure_is_rejected():
    llm = block(n_ctx=32, structured_output={"schema": User})
    (output,) = llm.generate([CHAT])
    assert isinstance(output.error, Rejected) and "leaves 14" in str(output.error)


def test_the_context_ends_a_text(random_weights):
    llm = block(model_path=random_weights, n_ctx=64)
    (output,) = llm.generate([CHAT], stop=None, **WILD)
    assert sum((output.usage.input_tokens, output.usage.output_tokens)) <= 64


def test_an_image_is_rejected_and_parts_of_text_are_joined(llm):
    parts = [{"type": "text", "text": "What's the capital "}, {"type": "text", "text": "of Spain?"}]
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    read, refused = llm.generate([[{"role": "user", "content": parts}], [{"role": "user", "content": [image]}]], seed=1)
    assert read == ["The capital of Spain is Madrid."]
    assert isinstance(refused.error, Rejected) and "image_url" in str(refused.error)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('no system prompt, please') }}", "no system prompt, please"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
)
def test_a_template_may_refuse_a_chat_and_does_no_harm(template, why):
    with pytest.raises(Rejected, match=f"chat template refuses this chat.*{why}"):
        render_chat(template, CHAT)


def test_hidden_states_are_one_row_per_token(llm):
    first, second, third = llm.get_last_hidden_states([CHAT, CHATS[1], CHAT])
    assert first.shape == (18, 192) and first.dtype == np.float32 and len(second) > 18
    assert np.allclose(first, third) and np.isfinite(second).all() and not np.allclose(first[0], first[1])


def test_hidden_states_are_those_of_transformers(tmp_path):
    pytest.importorskip("gguf")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tests.benchmarks.llamacpp import exact

    llm = block(model_path=exact(tmp_path / "exact.gguf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT, dtype="float32").eval()
    chats: list[ChatType] = [CHAT, [{"role": "user", "content": "What's the capital of Spain? " * 90}]]
    for chat, state in zip(chats, llm.get_last_hidden_state(chats), strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            own = model(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
        assert state.shape == own.shape and np.abs(state - own).max() < 1e-3
    assert len(state) > 512
    llm.unload()


# ----------------------------------------------------------------------------------------------------- coming and going


def test_a_file_that_is_not_there_is_named(tmp_path):
    for ask in (lambda llm: llm.load(), lambda llm: llm.generate_outputs([CHAT])):
        with pytest.raises(Fatal, match=r"no file `.*nowhere\.gguf`.* give `repo_id` and `filename`"):
            ask(block(model_path=tmp_path / "nowhere.gguf"))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The snapshot of a repository in a cache of the Hub, where there is no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--tiny-GGUF"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1" * 40)
    (snapshot := repository / "snapshots" / ("1" * 40)).mkdir(parents=True)
    return snapshot


def test_a_file_on_the_hub_is_downloaded_when_it_is_needed(hub):
    (hub / "tiny.Q8_0.gguf").symlink_to(demo.GGUF)
    llm = LlamaCppLLM(repo_id="someone/tiny-GGUF", filename="tiny.Q8_0.gguf", n_threads=1)
    assert llm.model_name == "tiny.Q8_0" and llm._engine_key() != block()._engine_key()
    assert llm.generate([CHAT], temperature=0) == [["The capital of Spain is Madrid."]]
    llm.unload()
    other = LlamaCppLLM(repo_id="someone/tiny-GGUF", filename="tiny.Q4_K_M.gguf")
    with pytest.raises(Fatal, match=r"cannot download `tiny\.Q4_K_M\.gguf` of `someone/tiny-GGUF`.*`HF_TOKEN`"):
        other.load()
    assert store.key_of(llm, CHAT, {}, 0) != store.key_of(other, CHAT, {}, 0)


def test_of_a_model_in_several_files_all_are_downloaded(monkeypatch):
    asked: list[tuple[str, str]] = []
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *names: asked.append(names) or str(demo.GGUF))
    llm = LlamaCppLLM(repo_id="a/b", filename="q/large-00001-of-00003.gguf", n_threads=1)
    llm.load()
    llm.unload()
    assert asked == [("a/b", f"q/large-0000{at}-of-00003.gguf") for at in (1, 2, 3)]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "none"),
        ({"repo_id": "a/b"}, "`repo_id`"),
        ({"filename": "c.gguf"}, "`filename`"),
        ({"model_path": "c.gguf", "repo_id": "a/b"}, "`model_path` and `repo_id`"),
        ({"model_path": "c.gguf", "repo_id": "a/b", "filename": "c.gguf"}, "`model_path` and `repo_id` and `filename`"),
    ],
    ids=str,
)
def test_a_model_is_in_one_place(fields, found):
    with pytest.raises(ValidationError, match=f"either `model_path`, or `repo_id` and `filename` .*, not {found}\\."):
        LlamaCppLLM(**fields)


def test_where_memory_runs_out_says_what_to_lower(monkeypatch, tmp_path):
    import llama_cpp

    freed: list[Any] = []
    free = llama_cpp.llama_model_free
    monkeypatch.setattr(llama_cpp, "llama_model_free", lambda model: freed.append(model) or free(model))
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
    with pytest.raises(Fatal, match="no memory for 616 tokens: lower `n_ctx`, `n_parallel` or `n_gpu_layers`"):
        block(n_ctx=77).load()
    assert len(freed) == 1
    (tmp_path / "half.gguf").write_bytes(demo.GGUF.read_bytes()[:100_000])
    with pytest.raises(Fatal, match="no memory for it: lower `n_gpu_layers`, or take a smaller quantization"):
        block(model_path=tmp_path / "half.gguf").load()
    with pytest.raises(Fatal, match="memory ran out: lower `n_ctx`, `n_parallel` or `n_gpu_layers`"):
        LlamaServerLLM(model_path=tmp_path / "half.gguf").load()


def test_an_engine_that_is_up_waits_for_none_that_loads():
    up, loads, go = local.shared_engine((block, 1), object), threading.Event(), threading.Event()
    built: list[object] = []

    def build() -> object:
        loads.set()
        go.wait(30)
        built.append(object())
        return built[-1]

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(local.shared_engine((block, 2), build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert loads.wait(30)
    asked = threading.Thread(target=lambda: found.append(local.shared_engine((block, 1), object)), daemon=True)
    asked.start()
    asked.join(10)
    assert found == [up]
    assert local.shared_engine((least, 1), object) is not up  # nor does one of another class
    go.set()
    for thread in threads:
        thread.join()
    assert built * 4 == found[1:]
    for key in ((block, 1), (block, 2), (least, 1)):
        local.free_engine(key)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(Fatal, match=r"cannot load `.*text\.gguf`: it is no GGUF file"):
        block(model_path=tmp_path / "text.gguf").load()


@pytest.mark.parametrize("missing", ["llama_cpp", "outlines_core"])
def test_a_missing_package_is_named_with_its_cure(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    llm = block(n_ctx=77, structured_output={"schema": User})
    with pytest.raises(Fatal, match=rf"`{missing}` package: `pip install 'distilflow\[llamacpp\]'`"):
        llm.load()


def test_the_name_is_the_files():
    assert LlamaCppLLM(model_path="models/some.Q4_K_M.gguf").model_name == "some.Q4_K_M"


def test_unloaded_it_lets_go_of_its_memory_and_loads_again(llm):
    engine = weakref.ref(llm._engine())
    block(structured_output={"schema": User}).load()  # the same engine, and an automaton
    llm.unload()
    gc.collect()  # the tests before had errors, whose tracebacks hold on to it
    assert engine() is None
    assert llm.generate([CHAT], temperature=0) == [["The capital of Spain is Madrid."]]


SCRIPT = """
import sys, threading, time
from llms import LlamaCppLLM
from llms.local.llama_cpp import engine
engine.EXIT_TIMEOUT_S = 1000
llm = LlamaCppLLM(n_threads=1, model_path=sys.argv[1], structured_output={"format": "regex", "schema": "[A-E]{900}"})
chat = [{"role": "user", "content": "Hi"}]
if sys.argv[2] == "busy":
    llm.load()
    threading.Thread(target=lambda: llm.generate([chat], 2000), daemon=True).start()
    while not llm._engine()._lock.locked():
        time.sleep(0.01)
else:
    assert len(llm.generate([chat])[0][0]) == 900
    llm.get_last_hidden_state([chat])
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_the_process_ends_without_a_word_and_does_not_wait_for_a_long_batch(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, demo.GGUF, how], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_server_closes_a_structure_within_the_context_where_no_limit_is_given(random_weights):
    llm = LlamaServerLLM(model_path=random_weights, n_ctx=128, n_threads=1, structured_output={"schema": User})
    for output in llm.generate(CHATS[:3], seed=1, **WILD):
        User.model_validate_json(output[0] or "")
        assert output.usage.output_tokens > 90 and output.error is None


def test_llama_cpps_own_server_gives_the_same_hidden_states():
    llm = block()
    chats = [[{"role": "user", "content": text}] for text in ("Hello there", "What's the capital of Spain?")]
    for ours, theirs in zip(
        llm.get_last_hidden_state(chats), LlamaServerLLM().get_last_hidden_state(chats), strict=True
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
