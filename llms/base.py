"""What every model here is: a Prefect block, plain data, and a function from chats to texts."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, final, get_type_hints

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, ValidationError, create_model

from llms import engine, loop
from llms.errors import Fatal, LLMError, Rejected
from llms.strict import Strict, explain
from llms.structured import StructuredOutput
from llms.typing import ChatType, GenerateOutput, HiddenState, Usage


class _Load:
    """`OpenAILLM.load("prod")` reads a saved block; `llm.load()` readies this one."""

    def __get__(self, llm: "LLM | None", cls: type["LLM"]) -> Any:
        return super(LLM, cls).load if llm is None else llm.ready


class LLM(Strict, Block, ABC):
    """Turns chats into texts. Subclass it for engines that take a whole batch at once.

    A subclass gives `model_name` and `generate`; the keyword arguments of `generate` besides the inputs and
    `num_generations` are its runtime parameters. It holds configuration only, never a client or an engine, so it
    pickles, is saved as a Prefect block and loads back equal.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    load: ClassVar[Any] = _Load()

    Options: ClassVar[type[Strict]] = Strict
    """Runtime parameters of `generate`, a nested model; a serialization alias is the provider's name on the wire."""

    use_cache: bool = Field(
        default=True, description="Take answers that are in the store already; new ones are stored either way."
    )
    generation_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Runtime parameters used wherever a call gives none of its own."
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "_block_type_name" not in vars(cls):
            cls._block_type_name = None  # its own name, or it would take its parent's place among Prefect's blocks
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        own = vars(cls).get("agenerate", vars(cls).get("generate"))
        if own and "Options" not in vars(cls) and not getattr(own, "__isabstractmethod__", False):
            cls.Options = _options_of(cls, own)

    @property
    @abstractmethod
    def model_name(self) -> str:
        """The name that labels every row this model wrote."""

    @abstractmethod
    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """Answer every chat `num_generations` times, in order."""

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """The last hidden state of every chat, `[num_tokens, hidden_size]` each.

        Raises:
            Fatal: If this model cannot give it.
        """
        raise Fatal(f"`{type(self).__name__}` gives no hidden states: a model that runs in this process does.")

    @final
    def get_last_hidden_states(self, inputs: list[ChatType]) -> list[HiddenState]:
        """The same as `get_last_hidden_state`."""
        return self.get_last_hidden_state(inputs)

    def ready(self) -> None:
        """Acquire what is slow to acquire, and say what is missing. Optional; twice is harmless.

        Override it to check for a package, a key or a file; `llm.load()` calls it.
        """

    def unload(self) -> None:
        """Let go of memory and connections. The block stays usable."""

    def cost(self, usage: Usage) -> float | None:
        """Dollars for this usage; `None` when the price is not known."""
        return None

    def options(self, kwargs: Mapping[str, Any]) -> Strict:
        """These runtime parameters over the block's own, coerced to their types.

        Raises:
            Fatal: If a name is unknown or a value has the wrong type.
        """
        try:
            return self.Options(**{**self.generation_kwargs, **kwargs})
        except ValidationError as error:
            raise Fatal(f"Runtime parameters of `{type(self).__name__}`: {explain(error)}") from None

    def generate_outputs(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """What a `Task` calls: `generate` with `generation_kwargs`, where one bad chat costs only its own answer.

        What is in the store already is not asked again, unless `use_cache` is off.

        Returns:
            One output per chat, in order; a chat that failed has `None` texts and its `error`.

        Raises:
            Fatal: If no request can work.
        """
        options = self.options(kwargs).model_dump(exclude_unset=True)
        return engine.answer_batch(self, inputs, num_generations, options)

    def generate_isolated(
        self, inputs: list[ChatType], num_generations: int, options: dict[str, Any]
    ) -> list[GenerateOutput]:
        """`generate`, where a chat that makes it raise is found and fails alone."""
        try:
            outputs = self.generate(inputs, num_generations, **options)
        except Fatal:
            raise
        except Exception as error:
            if len(inputs) > 1:  # find the chat that did it: the others have their answers
                return [self.generate_isolated([chat], num_generations, options)[0] for chat in inputs]
            reason = error if isinstance(error, LLMError) else Rejected(f"{type(error).__name__}: {error}")
            return [GenerateOutput.failed(reason, num_generations)]
        if outputs is None or len(outputs) != len(inputs):
            count = "nothing" if outputs is None else f"{len(outputs)} outputs"
            raise Fatal(f"`{type(self).__name__}.generate` returned {count} for {len(inputs)} chats: one each is due.")
        return [GenerateOutput.of(output) for output in outputs]


class AsyncLLM(LLM, ABC):
    """Turns chats into texts, one awaitable call per chat. Subclass it for APIs.

    A subclass gives `model_name` and `agenerate`; concurrency, retries, order and errors are done here.
    """

    max_concurrency: int = Field(
        default=500, gt=0, description="Requests in flight at once, at most; how many is found out as it goes."
    )
    requests_per_minute: int | None = Field(
        default=None, gt=0, description="Requests a minute, at most; found out when empty."
    )
    tokens_per_minute: int | None = Field(
        default=None, gt=0, description="Tokens a minute, at most; found out when empty."
    )

    @abstractmethod
    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times."""

    def account(self) -> Hashable:
        """What shares a provider's limits: equal for models whose requests are counted together."""
        return (type(self).__qualname__, self.model_name)

    def limits(self) -> dict[str, Any]:
        """How many requests went out at once, what the provider refused, and how the limit moved."""
        return loop.run(engine.limits(self))

    @final
    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """Answer every chat, concurrently and in order, from a script, a notebook or a running event loop.

        Every call asks; what comes is in the store before it is returned.

        Returns:
            One output per chat; a chat that failed has `None` texts and its `error`.

        Raises:
            Fatal: If no request can work: a missing key, an unknown model, a misspelt parameter.
        """
        return self._answer(inputs, num_generations, kwargs, look_up=False)

    @final
    def generate_outputs(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """What a `Task` calls: the same as `generate`, but what is in the store already is not asked again."""
        return self._answer(inputs, num_generations, kwargs, look_up=self.use_cache)

    def _answer(
        self, inputs: list[ChatType], num_generations: int, kwargs: dict[str, Any], look_up: bool
    ) -> list[GenerateOutput]:
        options = self.options(kwargs).model_dump(exclude_unset=True)
        self.ready()
        return loop.run(engine.answer_all(self, inputs, num_generations, options, look_up))


class StructuredLLM(LLM, ABC):
    """A model that can be held to a JSON schema or a pattern."""

    structured_output: StructuredOutput | None = Field(
        default=None, description="JSON schema or regular expression that every text must match."
    )


def _options_of(cls: type[LLM], generate: Callable[..., Any]) -> type[Strict]:
    """The runtime parameters a user's `generate` or `agenerate` declares in its signature."""
    try:
        hints = get_type_hints(inspect.unwrap(generate), include_extras=True)
    except NameError:  # a type imported for the type checker only
        hints = {}
    parameters = list(inspect.signature(generate).parameters.values())[1:]
    named: dict[str, Any] = {
        each.name: (hints.get(each.name, Any), ... if each.default is each.empty else each.default)
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and each.name not in ("input", "inputs", "num_generations")
    }
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if takes_any and cls.Options is not LLM.Options:  # `**kwargs` passed on to a model that declares them
        return create_model("Options", __base__=cls.Options, **named) if named else cls.Options
    config = ConfigDict(extra="allow" if takes_any else "forbid", arbitrary_types_allowed=True, protected_namespaces=())
    base = type("Options", (Strict,), {"model_config": config, "__module__": cls.__module__})
    return create_model(f"{cls.__name__}Options", __base__=base, **named)
