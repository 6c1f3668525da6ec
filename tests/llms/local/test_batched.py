"""The template of engines in this process, with an engine that writes what it is told."""

import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from llms import Fatal, Rejected
from llms.config.strict import StrictModel
from llms.local.automaton import Automaton, Compiler
from llms.local.base import EngineKey
from llms.local.batched import BatchedLLM, Prompt, Write
from llms.local.generation import TokenSequence
from llms.typing import ChatType, HiddenState, StructuredOutputType

CHAT: ChatType = [{"role": "user", "content": "Hi"}]
BYTES = {bytes([byte]): [byte] for byte in range(256)}


@dataclass
class Echo:
    """An engine over bytes, which writes the letter `text` of every attempt until its tokens are spent."""

    context_length: int | None = 32
    max_new_tokens: int | None = None
    attempts: str = "0"
    written: list[TokenSequence] = field(default_factory=list)
    compiler: Compiler = field(default_factory=lambda: Compiler(BYTES, 256))

    def compile(self, structure: StructuredOutputType) -> Automaton:
        return self.compiler.compile(structure)

    def write(self, sequences: list[TokenSequence], letter: str) -> None:
        self.written += sequences
        for sequence in sequences:
            sequence.text = letter * (sequence.automaton.min_tokens if sequence.automaton else 1)
            sequence.tokens, sequence.finish_reason = list(sequence.text.encode()), "stop"


class EchoLLM(BatchedLLM):
    """A model that is an `Echo`."""

    name: str = "echo"
    attempts: str = "0"
    context_length: int | None = 32
    seed: int | None = None

    class Options(StrictModel):
        max_new_tokens: int | None = None
        stop: str | list[str] | None = None
        seed: int | None = None
        greedy: bool = False

    @property
    def model_name(self) -> str:
        return self.name

    def _engine_key(self) -> EngineKey:
        return (type(self), self.name, self.context_length)

    def _start_engine(self) -> Echo:
        return Echo(self.context_length)

    def _tokenize(self, engine: Echo, chats: list[ChatType]) -> list[Prompt]:
        return [list(str(message["content"]).encode()) for (message,) in chats]

    def _decoder(self, engine: Echo, options: dict[str, Any]) -> tuple[bool, Write]:
        assert options.keys() <= {"greedy"}
        return options["greedy"], lambda sequences, attempt: engine.write(sequences, self.attempts[attempt])

    def _hidden_states(self, engine: Echo, prompts: list[list[int]]) -> list[HiddenState]:
        return [np.zeros((len(prompt), 1), np.float32) for prompt in prompts]


@pytest.fixture
def llm():
    block = EchoLLM(attempts="0123456789")
    yield block
    block.unload()


def digits(count: int) -> dict[str, str]:
    pytest.importorskip("outlines_core")
    return {"format": "regex", "schema": rf"\d{{{count}}}"}


def test_every_chat_gets_its_generations_in_order(llm):
    first, second = llm.generate([CHAT, CHAT], 2)
    assert first == second == ["0", "0"] and first.usage.input_tokens == 2 and first.usage.output_tokens == 2
    assert [(each.generation, each.attempt) for each in llm._engine().written] == [(0, 0), (1, 0)] * 2
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("options", "entropy"),
    [({}, None), ({"seed": 7}, [7, 0, 0]), ({"greedy": True}, [0, 0, 0]), ({"greedy": True, "seed": 7}, [7, 0, 0])],
    ids=str,
)
def test_a_sequence_has_a_seed_of_its_own_and_a_greedy_one_always(options, entropy, llm):
    llm.generate([CHAT], **options)
    assert llm._engine().written[-1].entropy == entropy
    EchoLLM(attempts="0", seed=3).generate([CHAT], **options)
    assert llm._engine().written[-1].entropy == (entropy if "seed" in options else [3, 0, 0])


@pytest.mark.parametrize(("stop", "stops"), [("a", ("a",)), (["a", "", "b"], ("a", "b")), (None, ())], ids=str)
def test_stop_texts_are_given_to_every_sequence(stop, stops, llm):
    llm.generate([CHAT], stop=stop)
    assert llm._engine().written[-1].stop == stops


def test_an_answer_has_the_tokens_that_the_context_leaves(llm):
    llm.generate([CHAT])
    assert llm._engine().written[-1].max_tokens == 30
    llm.generate([CHAT], max_new_tokens=9)
    assert llm._engine().written[-1].max_tokens == 9
    unbounded = EchoLLM(context_length=None)
    unbounded.generate([CHAT], max_new_tokens=900)
    assert unbounded._engine().written[-1].max_tokens == 900


@pytest.mark.parametrize("length", [0, 32, 40])
def test_a_chat_without_room_costs_its_own_answer_only(length, llm):
    refused, answered = llm.generate([[{"role": "user", "content": "x" * length}], CHAT])
    assert answered == ["0"] and refused == [None] and isinstance(refused.error, Rejected)
    assert f"The chat has {length} tokens, which is too long for the 32 that `echo` reads." in str(refused.error)


def test_a_structure_needs_its_tokens_and_room_in_the_context(llm):
    held = llm.with_structured_output(digits(9))
    with pytest.raises(Fatal, match="`structured_output` needs `max_new_tokens` of 9 or more: 8 is too small"):
        held.generate([CHAT], max_new_tokens=8)
    refused, answered = held.generate([[{"role": "user", "content": "x" * 25}], CHAT])
    assert answered == ["0" * 9] and "leaves 7 of the 32 that `echo` reads for an answer" in str(refused.error)
    with pytest.raises(Fatal, match="exclude each other"):
        held.generate([CHAT], stop="1")


def test_a_structure_of_a_row_fails_its_own_row_only(llm):
    long, short = llm.with_structured_output(digits(9)), llm.with_structured_output(digits(3))
    refused, answered, free = llm.generate_together([(long, CHAT), (short, CHAT), (llm, CHAT)], max_new_tokens=5)
    assert answered == ["000"] and free == ["0"] and isinstance(refused.error, Rejected)
    with pytest.raises(Fatal, match="needs `max_new_tokens` of 9"):
        long.generate_together([(long, CHAT), (short, CHAT)], max_new_tokens=5)


def test_what_is_invalid_is_generated_again_until_attempts_run_out(llm):
    pytest.importorskip("outlines_core")
    schema = {"type": "integer", "minimum": 0, "multipleOf": 4}
    (output,) = llm.model_copy(update={"attempts": "1234"}).with_structured_output({"schema": schema}).generate([CHAT])
    assert output == [None] and output.attempts == 3 and "None of 3 texts keeps to" in str(output.error)
    llm = llm.model_copy(update={"attempts": "1234", "max_schema_retries": 3})
    (output,) = llm.with_structured_output({"schema": schema}).generate([CHAT])
    assert output == ["4"] and output.attempts == 4 and output.usage.output_tokens == 4 and not output.error


def test_an_error_does_not_hold_on_to_the_engine(llm):
    engine = weakref.ref(llm._engine())
    output, _ = llm.generate([[{"role": "user", "content": "x" * 40}], CHAT])
    with pytest.raises(Rejected, match="too long") as failure:
        llm.get_last_hidden_state([[{"role": "user", "content": "x" * 40}]])
    llm.unload()
    assert engine() is None and output.error and failure


def test_hidden_states_are_one_row_per_token(llm):
    assert [state.shape for state in llm.get_last_hidden_state([CHAT, [{"role": "user", "content": "Hello"}]])] == [
        (2, 1),
        (5, 1),
    ]
