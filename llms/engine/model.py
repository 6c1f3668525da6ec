"""Protocols of a model: the members that the engine uses, whatever the class."""

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Protocol, Self, TypeGuard

from llms.typing import ChatType, GenerateOutput, ModelInfo, StructuredOutputType, Usage


class Model(ModelInfo, Protocol):
    """A model that answers a batch of chats in one call."""

    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]: ...

    def with_structured_output(self, structured_output: Any) -> Self: ...

    def cost(self, usage: Usage) -> float | None: ...


class MixedSchemaModel(Model, Protocol):
    """A model that takes chats with different structures in one batch."""

    def generate_together(
        self, requests: Sequence[tuple[Any, ChatType]], num_generations: int, **kwargs: Any
    ) -> list[GenerateOutput]: ...


class AsyncModel(Model, Protocol):
    """A model that answers one chat per call, with its limits."""

    @property
    def max_concurrency(self) -> int: ...
    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def tokens_per_minute(self) -> int | None: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def shared_limit(self) -> str | None: ...

    max_generations_per_request: ClassVar[int | None]

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput: ...

    def rate_limit_scope(self) -> Hashable: ...


class ConstrainedModel(AsyncModel, Protocol):
    """A model whose texts must match a structure."""

    @property
    def structured_output(self) -> StructuredOutputType: ...
    @property
    def max_schema_retries(self) -> int: ...


def mixes_schemas(llm: Model) -> TypeGuard[MixedSchemaModel]:
    """Return whether chats with different structures are one batch: not if a user's class overrides `generate`."""
    return next("generate_together" in vars(cls) for cls in type(llm).__mro__ if "generate" in vars(cls))


def is_constrained(llm: AsyncModel) -> TypeGuard[ConstrainedModel]:
    """Return whether the texts of a model must match a structure."""
    return getattr(llm, "structured_output", None) is not None
