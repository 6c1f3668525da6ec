"""Deployments: flows with parameters, schedules, pool and queue, in the format of `prefect deploy`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.exceptions import MissingFlowError, ParameterTypeError, ScriptError, SignatureMismatchError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from deployments.errors import ConfigurationError
from deployments.reconcile.api import Api
from deployments.reconcile.files import entries, reject_unknown_keys
from deployments.reconcile.resource import Resource

FIELDS = (
    "name",
    "entrypoint",
    "description",
    "tags",
    "work_pool",
    "schedules",
    "parameters",
    "concurrency_limit",
    "enforce_parameter_schema",
    "pull",
    "version",
    "paused",
)
SCHEDULE_FIELDS = ("slug", "cron", "interval", "rrule", "timezone", "anchor_date", "day_or", "active", "parameters")
POOL_FIELDS = ("name", "work_queue_name", "job_variables")
DEPLOYMENT = "/deployments/name/{flow_name}/{deployment_name}"


def resources(api: Api, path: Path) -> Iterator[Resource]:
    """Yield the deployments of a file."""
    for config in entries(path, "deployments"):
        reject_unknown_keys(path, config, FIELDS)
        flow = _load_flow(path, config)
        yield _deployment(api, path, _validate_parameters(path, config, flow), flow)


def _deployment(api: Api, path: Path, config: dict[str, Any], flow: "Flow[..., Any]") -> Resource:
    actual = api.get(DEPLOYMENT, flow_name=flow.name, deployment_name=config["name"])
    desired = _desired(path, config, flow)
    unmanaged = [each for each in (actual or {}).get("schedules", []) if not each["slug"]]  # created in the UI

    def save() -> None:
        if not api.get("/work_pools/{name}", name=desired["work_pool_name"]):
            raise ConfigurationError(
                f"`{path}` names the work pool `{desired['work_pool_name']}`, which does not exist: "
                "`python -m deployments pools` makes those of `pools.yaml`."
            )
        flow_id = api.send("POST", "/flows/", {"name": flow.name})["id"]
        kept = [{key: each[key] for key in ("slug", "schedule", "active", "parameters")} for each in unmanaged]
        api.send("POST", "/deployments/", desired | {"flow_id": flow_id, "schedules": desired["schedules"] + kept})

    return Resource("deployment", f"{flow.name}/{config['name']}", desired, _actual(actual, desired), save)


def _desired(path: Path, config: dict[str, Any], flow: "Flow[..., Any]") -> dict[str, Any]:
    """Return the desired state, without keys that the file leaves out and that have no obvious default."""
    pool = config.get("work_pool") or {}
    reject_unknown_keys(path, pool | {"name": pool.get("name", "")}, POOL_FIELDS)
    desired = {
        "name": config["name"],
        "entrypoint": config["entrypoint"],
        "description": config.get("description") or flow.description,
        "tags": config.get("tags", []),
        "work_pool_name": pool.get("name", ""),
        "work_queue_name": pool.get("work_queue_name", "default"),
        "job_variables": pool.get("job_variables", {}),
        "parameters": config.get("parameters") or {},
        "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True)
        | {"additionalProperties": False},  # rejects a misspelt parameter before the run
        "enforce_parameter_schema": config.get("enforce_parameter_schema", True),
        "pull_steps": config.get("pull") or [],
        "schedules": [_schedule(path, each) for each in config.get("schedules") or []],
    }
    desired |= {key: config[key] for key in ("version", "paused") if key in config}
    match config.get("concurrency_limit"):
        case {"limit": limit, **options}:
            desired |= {"concurrency_limit": limit, "concurrency_options": options}
        case int(limit):
            desired["concurrency_limit"] = limit
    return json.loads(json.dumps(desired))


def _actual(deployment: dict[str, Any] | None, desired: dict[str, Any]) -> dict[str, Any] | None:
    """Return the actual state in the shape of the desired one.

    A schedule has the keys that the file gives; one that was removed from the file has a slug and `active` only.
    """
    if deployment is None:
        return None
    by_slug = {each["slug"]: each for each in deployment["schedules"]}
    schedules = []
    for each in desired["schedules"]:
        if match := by_slug.get(each["slug"]):
            schedule = {key: match["schedule"].get(key) for key in each["schedule"]}
            schedules.append({key: match[key] for key in each} | {"schedule": schedule})
    removed = by_slug.keys() - {None, *(each["slug"] for each in desired["schedules"])}
    schedules += [{"slug": slug, "active": by_slug[slug]["active"]} for slug in sorted(removed)]
    limit = (deployment.get("global_concurrency_limit") or {}).get("limit")
    actual_options = deployment.get("concurrency_options") or {}
    options = {key: actual_options.get(key) for key in desired.get("concurrency_options", {})}
    pull_steps = deployment.get("pull_steps") or []
    return deployment | {
        "schedules": schedules,
        "concurrency_limit": limit,
        "concurrency_options": options,
        "pull_steps": pull_steps,
    }


def _schedule(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    reject_unknown_keys(path, {"name": "a schedule"} | config, ("name", *SCHEDULE_FIELDS))
    if not config.get("slug"):
        raise ConfigurationError(f"`{path}`: every schedule has a `slug`, by which it is known when it changes.")
    schedule = {key: config[key] for key in SCHEDULE_FIELDS[1:-2] if key in config}
    rest = {"active": config.get("active", True), "parameters": config.get("parameters") or {}}
    return {"slug": config["slug"], "schedule": schedule, **rest}


def _load_flow(path: Path, config: dict[str, Any]) -> "Flow[..., Any]":
    entrypoint = config.get("entrypoint", "")
    try:
        return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except (ImportError, MissingFlowError, ScriptError, ValueError) as error:
        reason = error.__cause__ or error
        raise ConfigurationError(
            f"`{path}`: the entrypoint `{entrypoint}` of `{config['name']}` is no flow, such as "
            f"`flows.text_generation.text_generation`: {reason}"
        ) from None


def _validate_parameters(path: Path, config: dict[str, Any], flow: "Flow[..., Any]") -> dict[str, Any]:
    """Return the configuration with parameters coerced by the flow: `limit: "5"` is a number, which Prefect rejects.

    Raises:
        ConfigurationError: If the flow rejects these parameters, or those of a schedule.
    """
    defaults, schedules = config.get("parameters") or {}, config.get("schedules") or []
    reject_unknown_keys(path, {"name": config["name"]} | defaults, ["name", *flow.parameters.properties])
    if set(flow.parameters.required or []) - defaults.keys():
        return config  # a run is given the others, and the flow validates them all then

    def coerce(parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            validated = flow.validate_parameters(defaults | parameters)
        except (ParameterTypeError, SignatureMismatchError, ValueError) as error:
            raise ConfigurationError(f"`{path}`: `{config['name']}`: {error}") from None
        return {
            name: validated[name] if isinstance(validated[name], int | float) else value
            for name, value in parameters.items()
        }

    schedules = [each | {"parameters": coerce(each.get("parameters") or {})} for each in schedules]
    return config | {"parameters": coerce(defaults), "schedules": schedules}
