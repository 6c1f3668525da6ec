"""Block types: a form in the UI for every model."""

from collections.abc import Iterator
from html import unescape
from importlib import import_module
from typing import Any

from prefect.blocks.core import Block
from prefect.plugins import load_prefect_collections
from prefect.utilities.dispatch import get_registry_for_type

from deployments.reconcile.api import Api
from deployments.reconcile.resource import Resource

MODELS = "llms"
"""The collection with `LLM`, the base class of all models."""


def models() -> list[type[Block]]:
    """Return the classes of all models, other installed collections included, sorted by slug."""
    load_prefect_collections()
    base = import_module(MODELS).LLM
    registry = get_registry_for_type(Block) or {}
    return sorted(
        (cls for cls in registry.values() if issubclass(cls, base)), key=lambda cls: str(cls.get_block_type_slug())
    )


def resources(api: Api) -> Iterator[Resource]:
    """Yield the block type of every model."""
    for cls in models():
        slug = str(cls.get_block_type_slug())
        yield Resource("block type", slug, _desired(cls), _actual(api, cls, slug), lambda cls=cls: _register(cls))


def _desired(cls: type[Block]) -> dict[str, Any]:
    block_type = cls._to_block_type().model_dump(mode="json")
    shown = ("name", "logo_url", "documentation_url", "description", "code_example")
    return {key: _unescape(block_type[key]) for key in shown} | {
        "fields": "this version",
        "capabilities": sorted(cls.get_block_capabilities()),
    }


def _actual(api: Api, cls: type[Block], slug: str) -> dict[str, Any] | None:
    block_type = api.get("/block_types/slug/{slug}", slug=slug)
    if block_type is None:
        return None
    schema = api.get("/block_schemas/checksum/{checksum}", checksum=cls._calculate_schema_checksum()) or {}
    return {key: _unescape(value) for key, value in block_type.items()} | {
        "fields": "this version" if schema else "an earlier version",
        "capabilities": sorted(schema.get("capabilities", [])),
    }


def _register(cls: type[Block]) -> None:
    register: Any = cls.register_type_and_schema
    register(_sync=True)


def _unescape(value: Any) -> Any:
    return unescape(value) if isinstance(value, str) else value
