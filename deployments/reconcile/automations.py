"""Automations: what Prefect does by itself when something happens, or does not."""

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
    """An automation for each file."""
    for path in paths:
        said = read(path)
        said["actions"], missing = _with_blocks(api, path, said.get("actions", []))
        note = f"tells nobody yet: there is no block `{missing}`" if missing else ""
        try:
            wanted = AutomationCore.model_validate(said)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigurationError(f"`{path}`: `{'.'.join(map(str, first['loc']))}`: {first['msg']}") from None
        yield _automation(api, wanted, note)


def _automation(api: Api, wanted: AutomationCore, note: str) -> Resource:
    by_name = {"automations": {"name": {"any_": [wanted.name]}}}
    found = next(iter(api.send("POST", "/automations/filter", by_name)), None)

    def save() -> None:
        body = wanted.model_dump(mode="json", exclude={"owner_resource"})
        if found:
            api.send("PUT", "/automations/{id}", body, id=found["id"])
        else:
            api.send("POST", "/automations/", body)

    fields = wanted.model_fields_set
    there = _plain(AutomationCore.model_validate(found)) if found else None
    plain = {key: value for key, value in _plain(wanted).items() if key in fields}
    return Resource("automation", wanted.name, plain, there, save, note)


def _with_blocks(api: Api, path: Path, actions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The actions, with the blocks that they name by `type/name`; and the name of one that there is not."""
    resolved, missing = [], ""
    for action in actions:
        if "block_document" in action:
            slug, _, name = str(action["block_document"]).partition("/")
            if not name:
                raise ConfigurationError(f"`{path}`: a block is named like `slack-webhook/alerts`, not `{slug}`.")
            found = api.get(BLOCK, slug=slug, block_document_name=name)
            rest = {key: value for key, value in action.items() if key != "block_document"}
            if found is None:
                missing = f"{slug}/{name}"
            action = rest | {"block_document_id": found["id"]} if found else {"type": "do-nothing"}
        resolved.append(action)
    return resolved, missing


def _plain(automation: AutomationCore) -> dict[str, Any]:
    """As JSON, the sets in order."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(each) for key, each in value.items() if key != "id"}
        if isinstance(value, list):
            return sorted(value) if all(isinstance(each, str) for each in value) else [ordered(each) for each in value]
        return value

    return ordered(automation.model_dump(mode="json", exclude={"id", "owner_resource"}))
