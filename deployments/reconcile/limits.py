"""Global concurrency limits: what all runs of a provider account, wherever they are, may do together."""

from collections.abc import Iterator
from pathlib import Path

from deployments.reconcile.api import Api
from deployments.reconcile.files import entries, reject_unknown_keys
from deployments.reconcile.resource import Resource

LIMIT = "/v2/concurrency_limits/{id_or_name}"


def resources(api: Api, path: Path) -> Iterator[Resource]:
    """The limits of a file."""
    for wanted in entries(path, "limits"):
        reject_unknown_keys(path, wanted, ("name", "limit", "slot_decay_per_second", "active"))
        yield _limit(api, wanted)


def _limit(api: Api, wanted: dict) -> Resource:
    name = wanted["name"]
    found = api.get(LIMIT, id_or_name=name)

    def save() -> None:
        if found:
            api.send("PATCH", LIMIT, wanted, id_or_name=name)
        else:
            api.send("POST", "/v2/concurrency_limits/", wanted)

    return Resource("limit", name, wanted, found, save)
