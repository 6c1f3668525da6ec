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
    """Yield the pools of a file, each followed by its queues."""
    for config in entries(path, "pools"):
        reject_unknown_keys(path, config, FIELDS)
        desired = {key: value for key, value in config.items() if key != "queues"}
        if template := config.get("base_job_template"):
            desired["base_job_template"] = read(path.parent / template)
        yield _pool(api, path, desired)
        for queue in sorted(config.get("queues", []), key=lambda each: each.get("priority", 0)):
            reject_unknown_keys(path, queue, QUEUE_FIELDS)
            yield _queue(api, config["name"], queue)


def _pool(api: Api, path: Path, desired: dict) -> Resource:
    name = desired["name"]
    actual = api.get(POOL, name=name)
    if actual and actual["type"] != desired["type"]:
        raise ConfigurationError(
            f"The work pool `{name}` is of type `{actual['type']}`, and `{path}` says `{desired['type']}`: it cannot "
            f"be changed. Delete it with `prefect work-pool delete {name}`, and its deployments are applied anew."
        )

    def save() -> None:
        api.upsert(actual, POOL, "/work_pools/", desired, immutable=("name", "type"), name=name)

    return Resource("work pool", name, desired, actual, save)


def _queue(api: Api, pool: str, desired: dict) -> Resource:
    ids = {"work_pool_name": pool, "name": desired["name"]}
    actual = api.get(QUEUE, **ids)

    def save() -> None:
        exists = api.get(QUEUE, **ids)  # `default` is created with its pool
        api.upsert(exists, QUEUE, "/work_pools/{work_pool_name}/queues", desired, **ids)

    return Resource("work queue", f"{pool}/{desired['name']}", desired, actual, save)
