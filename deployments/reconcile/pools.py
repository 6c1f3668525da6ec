"""Work pools with their base job templates, and their queues with priorities."""

from collections.abc import Iterator
from pathlib import Path

from deployments.errors import ConfigurationError
from deployments.reconcile.api import Api
from deployments.reconcile.files import entries, read, reject_unknown_keys
from deployments.reconcile.resource import Resource

FIELDS = ("name", "type", "description", "base_job_template", "concurrency_limit", "is_paused", "queues")
QUEUE_FIELDS = ("name", "priority", "description", "concurrency_limit", "is_paused")
POOL, QUEUE = "/work_pools/{name}", "/work_pools/{work_pool_name}/queues/{name}"


def resources(api: Api, path: Path) -> Iterator[Resource]:
    """The pools of a file, and their queues."""
    for said in entries(path, "pools"):
        reject_unknown_keys(path, said, FIELDS)
        wanted = {key: value for key, value in said.items() if key != "queues"}
        if template := said.get("base_job_template"):
            wanted["base_job_template"] = read(path.parent / template)
        yield _pool(api, path, wanted)
        for queue in sorted(said.get("queues", []), key=lambda each: each.get("priority", 0)):
            reject_unknown_keys(path, queue, QUEUE_FIELDS)
            yield _queue(api, said["name"], queue)


def _pool(api: Api, path: Path, wanted: dict) -> Resource:
    name = wanted["name"]
    found = api.get(POOL, name=name)
    if found and found["type"] != wanted["type"]:
        raise ConfigurationError(
            f"The work pool `{name}` is of type `{found['type']}`, and `{path}` says `{wanted['type']}`: it cannot be "
            f"changed. Delete it with `prefect work-pool delete {name}`, and its deployments are applied anew."
        )
    changeable = {key: value for key, value in wanted.items() if key not in ("name", "type")}

    def save() -> None:
        if found:
            api.send("PATCH", POOL, changeable, name=name)
        else:
            api.send("POST", "/work_pools/", wanted)

    return Resource("work pool", name, wanted, found, save)


def _queue(api: Api, pool: str, wanted: dict) -> Resource:
    name = wanted["name"]
    found = api.get(QUEUE, work_pool_name=pool, name=name)

    def save() -> None:
        if api.get(QUEUE, work_pool_name=pool, name=name):  # `default` comes with its pool
            api.send("PATCH", QUEUE, wanted, work_pool_name=pool, name=name)
        else:
            api.send("POST", "/work_pools/{work_pool_name}/queues", wanted, work_pool_name=pool)

    return Resource("work queue", f"{pool}/{name}", wanted, found, save)
