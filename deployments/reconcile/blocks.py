"""Block types: every model there is, as a form in the UI."""

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
"""The collection whose `LLM` all models are."""


def models() -> list[type[Block]]:
    """Every model, and those of other installed collections, by slug."""
    load_prefect_collections()
    base = import_module(MODELS).LLM
    registry = get_registry_for_type(Block) or {}
    return sorted(
        (cls for cls in registry.values() if issubclass(cls, base)), key=lambda cls: str(cls.get_block_type_slug())
    )


def resources(api: Api) -> Iterator[Resource]:
    """A block type for every model."""
    for cls in models():
        slug = str(cls.get_block_type_slug())
        yield Resource("block type", slug, _desired(cls), _actual(api, cls, slug), lambda cls=cls: _register(cls))


def _desired(cls: type[Block]) -> dict[str, Any]:
    described = cls._to_block_type().model_dump(mode="json")
    shown = {key: described[key] for key in ("name", "logo_url", "documentation_url", "description", "code_example")}
    return {key: _text(value) for key, value in shown.items()} | {
        "fields": "this version",
        "capabilities": sorted(cls.get_block_capabilities()),
    }


def _actual(api: Api, cls: type[Block], slug: str) -> dict[str, Any] | None:
    found = api.get("/block_types/slug/{slug}", slug=slug)
    if found is None:
        return None
    schema = api.get("/block_schemas/checksum/{checksum}", checksum=cls._calculate_schema_checksum()) or {}
    return {key: _text(value) for key, value in found.items()} | {
        "fields": "this version" if schema else "an earlier version",
        "capabilities": sorted(schema.get("capabilities", [])),
    }


def _register(cls: type[Block]) -> None:
    register: Any = cls.register_type_and_schema
    register(_sync=True)


def _text(value: Any) -> Any:
    return unescape(value) if isinstance(value, str) else value
