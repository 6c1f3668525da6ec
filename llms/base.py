"""Base classes of models: Prefect blocks that hold configuration and turn chats into texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, final

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockDocument
from pydantic import AfterValidator, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from llms.clients import event_loop
from llms.config import forms, redaction
from llms.config.signature import options_from_signature
from llms.config.strict import StrictModel, drop_none, format_validation_error, stale_block_message
from llms.engine.batch import generate_async, generate_sync, make_requests
from llms.engine.request import Request, limiter_stats
from llms.errors import BudgetExceeded, Fatal, LLMError, Rejected
from llms.store.key import resolve_file
from llms.structured.output import StructuredOutput
from llms.typing import ChatType, FormattedInput, GenerateOutput, HiddenState, StructuredOutputType, Usage


class _LoadOrPrepare:
    """The attribute `load`: of a class, Prefect's `load("prod")` of a saved block; of a model, `prepare`."""

    def __get__(self, llm: "LLM | None", cls: type["LLM"]) -> Any:
        return super(LLM, cls).load if llm is None else llm._prepare_redacted


class LLM(StrictModel, Block, ABC):
    """A model that answers a whole batch of chats per call.

    A subclass gives `model_name` and `generate`; the keyword arguments of `generate` besides the inputs and
    `num_generations` are its runtime parameters. It holds configuration only, never a client or an engine, so it
    pickles, is saved as a Prefect block and loads back equal.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    load: ClassVar[Any] = _LoadOrPrepare()
    """Load a saved block, or prepare this model, with errors that hold no secret. Usually not overridden."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that answers come from or through; `run.json` records their versions."""

    Options: ClassVar[type[StrictModel]] = StrictModel
    """Runtime parameters, read from the signature of `generate` if not given; a serialization alias is the provider's
    name of one. Override this in subclasses that have bounds, descriptions or aliases for them."""

    use_cache: bool = Field(
        default=True, description="Take answers that are in the store already; new ones are stored either way."
    )
    generation_kwargs: Annotated[dict[str, Any], AfterValidator(drop_none)] = Field(
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
            if message := stale_block_message(f"{cls.get_block_type_slug()}/{block_document.name}", error):
                raise RuntimeError(message) from None
            raise

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [(name, redaction.hide_secrets(value)) for name, value in super().__repr_args__()]

    @property
    @abstractmethod
    def model_name(self) -> str:
        """Return the name of the model, a label of every row it wrote. Override this in subclasses."""

    @abstractmethod
    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        """Return `num_generations` texts for every chat, in order. Override this in subclasses."""

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        """Return the last hidden state of every chat, `[num_tokens, hidden_size]` each.

        Override this in subclasses whose models run in this process.

        Raises:
            Fatal: If this model gives none.
        """
        raise Fatal(f"`{type(self).__name__}` gives no hidden states: a model that runs in this process does.")

    @final
    def get_last_hidden_states(self, inputs: list[ChatType]) -> list[HiddenState]:
        """Call `get_last_hidden_state`, under the name that other libraries use."""
        return self.get_last_hidden_state(inputs)

    def prepare(self) -> None:
        """Check for packages, keys and files, and load what takes long; calling it again has no effect.

        `llm.load()` calls it. Override this in subclasses that need any of these.

        Raises:
            Fatal: If something is missing.
        """

    def _prepare_redacted(self, prepare: Callable[[], None] | None = None) -> None:
        """Call `prepare`, with errors that hold no secret. Usually not overridden."""
        try:
            (prepare or self.prepare)()
        except LLMError as error:
            redaction.redact_error(error, self)
            raise

    def prepare_hidden_states(self) -> None:
        """Prepare for hidden states alone. Override this in subclasses that have an engine of their own for them."""
        self.load()

    @final
    def load_hidden_states(self) -> None:
        """Prepare this model for `get_last_hidden_state` alone."""
        self._prepare_redacted(self.prepare_hidden_states)

    def unload(self) -> None:
        """Release memory and connections; the block stays usable. Override this in subclasses that hold any."""

    def cost(self, usage: Usage) -> float | None:
        """Return dollars for this usage, `None` if unknown. Override this in subclasses that know their price."""
        return None

    def secret_values(self) -> set[str]:
        """Return the secrets that errors must not repeat. Override this in subclasses that read one from elsewhere."""
        return redaction.secrets_in_fields(self)

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields a stored answer depends on; a file counts with its content. Usually not overridden."""
        return {name: resolve_file(getattr(self, name)) for name in type(self).model_fields}

    def options(self, kwargs: Mapping[str, Any]) -> StrictModel:
        """Return the block's runtime parameters, updated with these and coerced to their types.

        Usually not overridden.

        Raises:
            Fatal: If a name is unknown or a value has the wrong type.
        """
        try:
            return self.Options(**{**self.generation_kwargs, **kwargs})
        except ValidationError as error:
            raise Fatal(f"Runtime parameters of `{type(self).__name__}`: {format_validation_error(error)}") from None

    def with_structured_output(self, structured_output: Any) -> Self:
        """Return a copy of this model whose texts must match a structure.

        Override this in subclasses that support one and are no `StructuredLLM`.

        Raises:
            Fatal: If the model supports no structured output.
            Rejected: If it does not support this structure.
        """
        raise Fatal(f"`{type(self).__name__}` cannot be held to a `structured_output`.")

    def generate_outputs(
        self, inputs: Sequence[FormattedInput], num_generations: int = 1, **kwargs: Any
    ) -> list[GenerateOutput]:
        """Generate as a `Task` does: a chat that fails costs only its own answer. Usually not overridden.

        Stored answers are used if `use_cache` is on; new ones are stored.

        Args:
            inputs: Chats, or pairs of a chat and the `structured_output` that its answer must match.
            num_generations: Generations per chat.
            **kwargs: Runtime parameters, over `generation_kwargs`.

        Returns:
            One output per chat, in order; a chat that failed has `None` texts and its `error`.

        Raises:
            Fatal: If no request can work.
        """
        return self._generate_outputs(inputs, num_generations, kwargs, self.use_cache)

    def _generate_outputs(
        self, inputs: Sequence[FormattedInput], num_generations: int, kwargs: dict[str, Any], use_cache: bool
    ) -> list[GenerateOutput]:
        """Generate with or without the cache. Usually not overridden."""
        options = self.options(kwargs).model_dump(exclude_unset=True)
        requests = make_requests(self, inputs, num_generations, options)
        outputs = iter(self._send_all([each for each in requests if isinstance(each, Request)], use_cache))
        return [next(outputs) if isinstance(each, Request) else each for each in requests]

    def _send_all(self, requests: Sequence[Request[Any]], use_cache: bool) -> list[GenerateOutput]:
        """Answer requests in order. Usually not overridden."""
        return generate_sync(self, requests, use_cache)


class AsyncLLM(LLM, ABC):
    """A model that answers one chat per awaitable call, such as an API.

    A subclass gives `model_name` and `agenerate`; this class does concurrency, retries, order and errors.
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
    """Generations that one request can return, unlimited if `None`. Override this in subclasses with a limit."""

    @abstractmethod
    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Return `num_generations` texts for one chat. Override this in subclasses."""

    def rate_limit_scope(self) -> Hashable:
        """Return a key that is equal for models whose requests a provider counts together.

        Models with different limits of their own, such as `max_concurrency`, have limiters of their own all the same.
        Override this in subclasses that have accounts.
        """
        return (type(self).__qualname__, self.model_name)

    def limiter_stats(self) -> dict[str, Any]:
        """Return the limiter's counts of requests and refusals, and its limits. Usually not overridden."""
        return event_loop.run(limiter_stats(self))

    @final
    def generate(
        self, inputs: Sequence[FormattedInput], num_generations: int = 1, **kwargs: Any
    ) -> list[GenerateOutput]:
        """Answer every chat, concurrently and in order, from a script, a notebook or a running event loop.

        No stored answers are used; new ones are stored before they are returned.

        Args:
            inputs: Chats, or pairs of a chat and the `structured_output` that its answer must match.
            num_generations: Generations per chat.
            **kwargs: Runtime parameters, over `generation_kwargs`.

        Returns:
            One output per chat; a chat that failed has `None` texts and its `error`.

        Raises:
            Fatal: If no request can work: a missing key, an unknown model, a misspelt parameter.
        """
        return self._generate_outputs(inputs, num_generations, kwargs, use_cache=False)

    def _send_all(self, requests: Sequence[Request[Any]], use_cache: bool) -> list[GenerateOutput]:
        """Prepare, then send requests concurrently. Usually not overridden."""
        self._prepare_redacted()
        try:
            return event_loop.run(generate_async(self, requests, use_cache))
        except BudgetExceeded:
            raise
        except Fatal:
            event_loop.cancel_all()  # other batches of the run, which cannot work either
            raise


class StructuredLLM(LLM, ABC):
    """A model that supports structured output: texts that match a JSON schema or a regular expression."""

    structured_output: StructuredOutput | None = Field(
        default=None,
        title="Structured Output",
        description="JSON schema or regular expression that every text must match.",
    )
    max_schema_retries: int = Field(
        default=2, ge=0, description="How often a text that does not keep to `structured_output` is asked for again."
    )

    def with_structured_output(self, structured_output: Any) -> Self:
        """Return a copy of this model whose texts must match a structure. Usually not overridden.

        Raises:
            Rejected: If it is no structure, or the model does not support it.
        """
        try:
            copy = self.model_copy(update={"structured_output": _STRUCTURED_OUTPUT.validate_python(structured_output)})
            copy._prepare_redacted()
        except ValidationError as error:
            raise Rejected(f"`structured_output`: {format_validation_error(error)}", attempts=0) from None
        except Fatal as error:
            raise Rejected(error.message, attempts=0) from None
        return copy


_STRUCTURED_OUTPUT: TypeAdapter[StructuredOutputType] = TypeAdapter(StructuredOutput)
