"""What every model here is: a Prefect block, plain data, and a function from chats to texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, final

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockDocument
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from llms.clients import event_loop
from llms.config import forms, redaction
from llms.config.signature import options_from_signature
from llms.config.strict import StrictModel, format_validation_error
from llms.engine import batch, request
from llms.errors import BudgetExceeded, Fatal, LLMError, Rejected
from llms.structured.output import StructuredOutput, canonical_schema
from llms.typing import ChatType, FormattedInput, GenerateOutput, HiddenState, StructuredOutputType, Usage


def _drop_none(options: dict[str, Any]) -> dict[str, Any]:
    """What was given: a form says `None` of the options that nobody filled in."""
    return {name: value for name, value in options.items() if value is not None}


def stale_block_message(name: str, error: RuntimeError) -> str | None:
    """What to do where Prefect could not load a block since the fields of its model have changed."""
    if not isinstance(error.__cause__, ValidationError):
        return None
    return (
        f"the block `{name}` was saved when its model had other fields: {format_validation_error(error.__cause__)} "
        f"Saving it again would keep them: `prefect block delete {name}`, and save it anew."
    )


class _LoadOrPrepare:
    """`OpenAILLM.load("prod")` reads a saved block; `llm.load()` readies this one."""

    def __get__(self, llm: "LLM | None", cls: type["LLM"]) -> Any:
        return super(LLM, cls).load if llm is None else llm._prepare_redacted


class LLM(StrictModel, Block, ABC):
    """Turns chats into texts. Subclass it for engines that take a whole batch at once.

    A subclass gives `model_name` and `generate`; the keyword arguments of `generate` besides the inputs and
    `num_generations` are its runtime parameters. It holds configuration only, never a client or an engine, so it
    pickles, is saved as a Prefect block and loads back equal.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    load: ClassVar[Any] = _LoadOrPrepare()

    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that answers come from or through; `run.json` records their versions."""

    Options: ClassVar[type[StrictModel]] = StrictModel
    """Runtime parameters of `generate`, a nested model; a serialization alias is the provider's name on the wire."""

    use_cache: bool = Field(
        default=True, description="Take answers that are in the store already; new ones are stored either way."
    )
    generation_kwargs: Annotated[dict[str, Any], AfterValidator(_drop_none)] = Field(
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
            cls.Options = options_from_signature(cls, own, cls.Options)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return forms.block_schema(core, cls.Options, handler)

    @classmethod
    def _load_from_block_document(cls, block_document: BlockDocument, validate: bool = True) -> Self:
        try:
            return super()._load_from_block_document(block_document, validate)
        except RuntimeError as error:
            if cure := stale_block_message(f"{cls.get_block_type_slug()}/{block_document.name}", error):
                raise RuntimeError(cure) from None
            raise

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

    def prepare(self) -> None:
        """Acquire what is slow to acquire, and say what is missing. Optional; twice is harmless.

        Override it to check for a package, a key or a file; `llm.load()` calls it.
        """

    def _prepare_redacted(self, ready: Callable[[], None] | None = None) -> None:
        """The same, with errors that hold no secret."""
        try:
            (ready or self.prepare)()
        except LLMError as error:
            redaction.redact_error(error, self)
            raise

    def prepare_hidden_states(self) -> None:
        """What `load` does, for hidden states alone. Override it where those have an engine of their own."""
        self.load()

    @final
    def load_hidden_states(self) -> None:
        """Ready this model for `get_last_hidden_state` alone."""
        self._prepare_redacted(self.prepare_hidden_states)

    def unload(self) -> None:
        """Let go of memory and connections. The block stays usable."""

    def cost(self, usage: Usage) -> float | None:
        """Dollars for this usage; `None` when the price is not known."""
        return None

    def options(self, kwargs: Mapping[str, Any]) -> StrictModel:
        """These runtime parameters over the block's own, coerced to their types.

        Raises:
            Fatal: If a name is unknown or a value has the wrong type.
        """
        try:
            return self.Options(**{**self.generation_kwargs, **kwargs})
        except ValidationError as error:
            raise Fatal(f"Runtime parameters of `{type(self).__name__}`: {format_validation_error(error)}") from None

    def with_structured_output(self, structured_output: Any) -> Self:
        """This model, its texts held to a structure.

        Raises:
            Fatal: If it cannot be held to any.
            Rejected: If it cannot be held to this one.
        """
        raise Fatal(f"`{type(self).__name__}` cannot be held to a `structured_output`.")

    def generate_outputs(
        self, inputs: Sequence[FormattedInput], num_generations: int = 1, **kwargs: Any
    ) -> list[GenerateOutput]:
        """What a `Task` calls: `generate` with `generation_kwargs`, where one bad chat costs only its own answer.

        What is in the store already is not asked again, unless `use_cache` is off.

        Args:
            inputs: Chats, or pairs of a chat and the `structured_output` its answer is held to.

        Returns:
            One output per chat, in order; a chat that failed has `None` texts and its `error`.

        Raises:
            Fatal: If no request can work.
        """
        return self._answered(inputs, num_generations, kwargs, look_up=self.use_cache)

    def _answered(
        self, inputs: Sequence[FormattedInput], num_generations: int, kwargs: dict[str, Any], look_up: bool
    ) -> list[GenerateOutput]:
        options = self.options(kwargs).model_dump(exclude_unset=True)
        models: dict[str, Self] = {}
        requests: dict[int, tuple[Self, ChatType]] = {}
        outputs: dict[int, GenerateOutput] = {}
        for at, given in enumerate(inputs):
            chat, structure = given if isinstance(given, tuple) else (given, None)
            try:
                name = canonical_schema(structure)
                if name not in models:
                    models[name] = self if structure is None else self.with_structured_output(structure)
            except Rejected as error:
                outputs[at] = GenerateOutput.failed(error, num_generations)
            else:
                requests[at] = (models[name], chat)
        answers = self._answers(list(requests.values()), num_generations, options, look_up)
        outputs |= zip(requests, answers, strict=True)
        return [outputs[at] for at in range(len(inputs))]

    def _answers(
        self, requests: Sequence[tuple[Any, ChatType]], num_generations: int, options: dict[str, Any], look_up: bool
    ) -> list[GenerateOutput]:
        return batch.answer_batch(self, requests, num_generations, options, look_up)


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
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds to wait for one response, before it is asked for again."
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds one answer may take from its first request on, further attempts included.",
    )

    shared_limit: str | None = Field(
        default=None, description="A global concurrency limit of Prefect that all processes keep to together."
    )

    max_generations_per_request: ClassVar[int | None] = None
    """How many generations one request can bring; any number when `None`."""

    @abstractmethod
    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times."""

    def rate_limit_scope(self) -> Hashable:
        """What shares a provider's limits: equal for models whose requests are counted together.

        Those that were given different limits, a `max_concurrency` for one, are counted apart all the same.
        """
        return (type(self).__qualname__, self.model_name)

    def limiter_stats(self) -> dict[str, Any]:
        """How many requests went out at once, what the provider refused, and how the limit moved."""
        return event_loop.run(request.summary(self))

    @final
    def generate(
        self, inputs: Sequence[FormattedInput], num_generations: int = 1, **kwargs: Any
    ) -> list[GenerateOutput]:
        """Answer every chat, concurrently and in order, from a script, a notebook or a running event loop.

        Every call asks; what comes is in the store before it is returned.

        Args:
            inputs: Chats, or pairs of a chat and the `structured_output` its answer is held to.

        Returns:
            One output per chat; a chat that failed has `None` texts and its `error`.

        Raises:
            Fatal: If no request can work: a missing key, an unknown model, a misspelt parameter.
        """
        return self._answered(inputs, num_generations, kwargs, look_up=False)

    def _answers(
        self, requests: Sequence[tuple[Any, ChatType]], num_generations: int, options: dict[str, Any], look_up: bool
    ) -> list[GenerateOutput]:
        self._prepare_redacted()
        try:
            return event_loop.run(batch.answer_all(self, requests, num_generations, options, look_up))
        except BudgetExceeded:
            raise
        except Fatal:
            event_loop.cancel_all()  # other batches of the run, which cannot work either
            raise


class StructuredLLM(LLM, ABC):
    """A model that can be held to a JSON schema or a pattern."""

    structured_output: StructuredOutput | None = Field(
        default=None,
        title="Structured Output",
        description="JSON schema or regular expression that every text must match.",
    )
    max_schema_retries: int = Field(
        default=2, ge=0, description="How often a text that does not keep to `structured_output` is asked for again."
    )

    def with_structured_output(self, structured_output: Any) -> Self:
        """This model, its texts held to a structure, however that is written.

        Raises:
            Rejected: If it is no structure, or one that this model cannot be held to.
        """
        try:
            held = self.model_copy(update={"structured_output": _STRUCTURED_OUTPUT.validate_python(structured_output)})
            held._prepare_redacted()
        except ValidationError as error:
            raise Rejected(f"`structured_output`: {format_validation_error(error)}", attempts=0) from None
        except Fatal as error:
            raise Rejected(error.message, attempts=0) from None
        return held


_STRUCTURED_OUTPUT: TypeAdapter[StructuredOutputType] = TypeAdapter(StructuredOutput)
