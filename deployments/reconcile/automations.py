"""Automations: actions that Prefect takes when an event occurs, or does not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.events.schemas.automations import AutomationCore
from pydantic import ValidationError

from deployments.errors import ConfigurationError
from deployments.reconcile.api import Api
from deployments.reconcile.files import read
from deployments.reconcile.resource import Resource

BLOCK = "/block_types/slug/{slug}/block_documents/name/{block_document_name}"


def resources(api: Api, paths: list[Path]) -> Iterator[Resource]:
    """Yield the automation of each file."""
    for path in paths:
        config = read(path)
        config["actions"], missing = _resolve_blocks(api, path, config.get("actions", []))
        note = f"tells nobody yet: there is no block `{missing}`" if missing else ""
        try:
            desired = AutomationCore.model_validate(config)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigurationError(f"`{path}`: `{'.'.join(map(str, first['loc']))}`: {first['msg']}") from None
        yield _automation(api, desired, note)


def _automation(api: Api, desired: AutomationCore, note: str) -> Resource:
    by_name = {"automations": {"name": {"any_": [desired.name]}}}
    actual = next(iter(api.send("POST", "/automations/filter", by_name)), None)

    def save() -> None:
        body = desired.model_dump(mode="json", exclude={"owner_resource"})
        id = actual["id"] if actual else ""
        api.upsert(actual, "/automations/{id}", "/automations/", body, method="PUT", id=id)

    fields = {key: value for key, value in _to_json(desired).items() if key in desired.model_fields_set}
    actual_fields = _to_json(AutomationCore.model_validate(actual)) if actual else None
    return Resource("automation", desired.name, fields, actual_fields, save, note)


def _resolve_blocks(api: Api, path: Path, actions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the actions with ids in place of `type/name` of blocks, and the name of a missing block."""
    resolved, missing = [], ""
    for action in actions:
        if "block_document" in action:
            slug, _, name = str(action["block_document"]).partition("/")
            if not name:
                raise ConfigurationError(f"`{path}`: a block is named like `slack-webhook/alerts`, not `{slug}`.")
            block = api.get(BLOCK, slug=slug, block_document_name=name)
            rest = {key: value for key, value in action.items() if key != "block_document"}
            if block is None:
                missing = f"{slug}/{name}"
            action = rest | {"block_document_id": block["id"]} if block else {"type": "do-nothing"}
        resolved.append(action)
    return resolved, missing


def _to_json(automation: AutomationCore) -> dict[str, Any]:
    """Return an automation as JSON, with sets sorted."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(each) for key, each in value.items() if key != "id"}
        if isinstance(value, list):
            return sorted(value) if all(isinstance(each, str) for each in value) else [ordered(each) for each in value]
        return value

    return ordered(automation.model_dump(mode="json", exclude={"id", "owner_resource"}))
