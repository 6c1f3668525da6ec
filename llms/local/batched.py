"""Base class of models whose engine generates a whole batch of chats at once, in this process."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

from llms.config.extras import import_optional
from llms.config.strict import StrictModel
from llms.errors import Fatal, Rejected
from llms.local.automaton import Automaton
from llms.local.base import LocalLLM, shared_engine
from llms.local.generation import PendingGenerations, TokenSequence, generate_validated
from llms.typing import ChatType, GenerateOutput, HiddenState, StructuredOutputType

T = TypeVar("T")

Prompt = list[int] | Rejected
"""Tokens of a chat, or why it has none."""

Write = Callable[[list[TokenSequence], int], None]
"""Generates sequences to their ends, given the number of the attempt."""


class Engine(Protocol):
    """A loaded model and its tokenizer."""

    @property
    def context_length(self) -> int | None:
        """Tokens of one chat, its answer included; `None` where the model has no bound."""

    @property
    def max_new_tokens(self) -> int | None:
        """Default of `max_new_tokens`; `None` for all that the context has room for."""

    def compile(self, structure: StructuredOutputType) -> Automaton:
        """Compile a structure for the model's tokens."""
        ...


class BatchedLLM(LocalLLM, ABC):
    """A model that generates a whole batch of chats at once, each constrained to a structure of its own.

    A subclass gives `model_name`, `Options`, `_engine_key`, `_start_engine`, `_tokenize`, `_decoder` and
    `_hidden_states`. An option `max_new_tokens`, `seed` or `stop`, and a field `seed`, mean here what they are called.
    """

    Options: ClassVar[type[StrictModel]] = StrictModel

    @abstractmethod
    def _start_engine(self) -> Engine:
        """Load the model. Override this in subclasses."""

    @abstractmethod
    def _tokenize(self, engine: Any, chats: list[ChatType]) -> list[Prompt]:
        """Apply the chat template and tokenize, up to where the answer begins. Override this in subclasses."""

    @abstractmethod
    def _decoder(self, engine: Any, options: dict[str, Any]) -> tuple[bool, Write]:
        """Return whether these sampling options are greedy, and a function that generates. Override this in subclasses.

        After its first attempt the function must sample even where the options are greedy: the most likely text was
        invalid.
        """

    @abstractmethod
    def _hidden_states(self, engine: Any, prompts: list[list[int]]) -> list[HiddenState]:
        """Compute the last hidden state of every token of every prompt. Override this in subclasses."""

    def _hidden_state_engine(self) -> Any:
        """Return the engine of hidden states. Override this in subclasses where those have an engine of their own."""
        return self._engine()

    def _context_name(self, engine: Any) -> str:
        """Name the context in errors. Override this in subclasses where it is a setting."""
        return f"the {engine.context_length} that `{self.model_name}` reads"

    def prepare(self) -> None:
        """Load the model, downloading it first where it is not here yet, and compile the structure.

        Usually not overridden.
        """
        self._automaton(self._engine())

    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """Answer every chat, many at once and in order. Usually not overridden.

        With a `seed`, an answer does not depend on which other chats are in the batch, as far as the device's
        arithmetic does not.

        Returns:
            One output per chat; one that is too long for the model or for memory, or got no valid text, has its
            `error`.

        Raises:
            Fatal: If no request can work: a missing package, model or chat template, a misspelt parameter, a
                `max_new_tokens` that is too small for the `structured_output`.
        """
        return self.generate_together([(self, chat) for chat in inputs], num_generations, **kwargs)

    def generate_together(
        self, requests: Sequence[tuple[Self, ChatType]], num_generations: int = 1, **kwargs: Any
    ) -> list[GenerateOutput]:
        """Answer chats with structures of their own in one batch. Usually not overridden.

        Args:
            requests: For each chat, this block or a copy with another structure. A copy whose structure cannot be
                compiled fails its own chats only.
        """
        options = self.options(kwargs).model_dump(exclude_none=True)
        engine = self._engine()
        max_tokens = options.pop("max_new_tokens", engine.max_new_tokens)
        automata = self._automata(engine, requests, max_tokens, options)
        started = time.perf_counter()
        stop, seed = options.pop("stop", ()), options.pop("seed", getattr(self, "seed", None))
        greedy, write = self._decoder(engine, options)
        prototype = TokenSequence(
            seed=(seed or 0) if greedy else seed,
            stop=tuple(filter(None, [stop] if isinstance(stop, str) else stop)),
        )
        prompts = self._prompts(engine, [chat for _, chat in requests])
        pending = [
            llm._pending(engine, prototype, max_tokens, automata[id(llm)], prompt, num_generations)
            for (llm, _), prompt in zip(requests, prompts, strict=True)
        ]
        return generate_validated(pending, write, 1 + self.max_schema_retries, started)

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """Compute the last hidden state of every chat under its template, `[num_tokens, hidden_size]` each.

        Usually not overridden.

        Raises:
            Rejected: If a chat is too long for the model or for memory.
        """
        engine = self._hidden_state_engine()
        try:
            return self._hidden_states(engine, [_accept(prompt) for prompt in self._prompts(engine, inputs)])
        finally:
            del engine  # an error's traceback would hold on to it

    def _engine(self) -> Engine:
        return shared_engine(self._engine_key(), self._start_engine)

    def _automata(
        self,
        engine: Engine,
        requests: Sequence[tuple[Self, ChatType]],
        max_tokens: int | None,
        options: Mapping[str, Any],
    ) -> dict[int, Automaton | Rejected | None]:
        """Compile the structure of every block in a batch, by the block's `id`.

        Raises:
            Fatal: If this block's own cannot be compiled; that of a copy fails only its chats.
        """
        automata: dict[int, Automaton | Rejected | None] = {}
        for llm in {id(llm): llm for llm, _ in requests}.values():
            try:
                automata[id(llm)] = llm._constraint(engine, max_tokens, options)
            except Fatal as error:
                if llm is self:
                    raise
                automata[id(llm)] = Rejected(error.message, attempts=0)
        return automata

    def _constraint(self, engine: Engine, max_tokens: int | None, options: Mapping[str, Any]) -> Automaton | None:
        """Compile the structure, and check that these options leave it room."""
        automaton = self._automaton(engine)
        if automaton and max_tokens is not None and max_tokens < automaton.min_tokens:
            raise Fatal(
                f"`structured_output` needs `max_new_tokens` of {automaton.min_tokens} or more: {max_tokens} is too "
                "small."
            )
        if automaton and options.keys() & {"stop", "stop_token_ids"}:
            raise Fatal("`stop` and `structured_output` exclude each other: a structure has an end of its own.")
        return automaton

    def _automaton(self, engine: Engine) -> Automaton | None:
        if self.structured_output is None:
            return None
        import_optional("outlines_core", self)
        return engine.compile(self.structured_output)

    def _prompts(self, engine: Any, chats: list[ChatType]) -> list[Prompt]:
        """Tokenize, and reject chats that leave no room for an answer."""
        return [self._check_length(engine, prompt) for prompt in self._tokenize(engine, chats)]

    def _check_length(self, engine: Any, prompt: Prompt) -> Prompt:
        if isinstance(prompt, Rejected) or (prompt and len(prompt) < (engine.context_length or len(prompt) + 1)):
            return prompt
        return Rejected(f"The chat has {len(prompt)} tokens, which is too long for {self._context_name(engine)}.")

    def _pending(
        self,
        engine: Engine,
        prototype: TokenSequence,
        max_tokens: int | None,
        automaton: Automaton | Rejected | None,
        prompt: Prompt,
        num_generations: int,
    ) -> PendingGenerations:
        """Prepare the generations of one chat; with an error where it cannot have any."""
        pending = PendingGenerations(self.structured_output, num_generations, prototype)
        try:
            automaton, prompt = _accept(automaton), _accept(prompt)
            room = engine.context_length and engine.context_length - len(prompt)
            max_tokens = min(each for each in (max_tokens, room) if each is not None)
            if automaton and max_tokens < automaton.min_tokens:
                raise Rejected(
                    f"The chat has {len(prompt)} tokens, which leaves {max_tokens} of {self._context_name(engine)} for "
                    f"an answer, and `structured_output` needs {automaton.min_tokens}."
                )
        except Rejected as error:
            pending.error = error.with_traceback(None)  # which would hold on to the engine
        else:
            pending.prototype = replace(prototype, prompt=prompt, max_tokens=max_tokens, automaton=automaton)
        return pending


def _accept(value: T | Rejected) -> T:
    """Return the value.

    Raises:
        Rejected: If it is one.
    """
    if isinstance(value, Rejected):
        raise value
    return value
