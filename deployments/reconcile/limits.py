"""Global concurrency limits: rates and slots that all runs of a provider account share."""

from collections.abc import Iterator
from pathlib import Path

from deployments.reconcile.api import Api
from deployments.reconcile.files import entries, reject_unknown_keys
from deployments.reconcile.resource import Resource

LIMIT = "/v2/concurrency_limits/{id_or_name}"


def resources(api: Api, path: Path) -> Iterator[Resource]:
    """Yield the limits of a file."""
    for desired in entries(path, "limits"):
        reject_unknown_keys(path, desired, ("name", "limit", "slot_decay_per_second", "active"))
        yield _limit(api, desired)


def _limit(api: Api, desired: dict) -> Resource:
    name = desired["name"]
    actual = api.get(LIMIT, id_or_name=name)

    def save() -> None:
        api.upsert(actual, LIMIT, "/v2/concurrency_limits/", desired, id_or_name=name)

    return Resource("limit", name, desired, actual, save)
