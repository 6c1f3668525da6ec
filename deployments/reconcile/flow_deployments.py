"""Deployments: flows with their parameters, schedules, pool and queue, as in a file for `prefect deploy`."""

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
SCHEDULE = ("slug", "cron", "interval", "rrule", "timezone", "anchor_date", "day_or", "active", "parameters")
POOL = ("name", "work_queue_name", "job_variables")
DEPLOYMENT = "/deployments/name/{flow_name}/{deployment_name}"


def resources(api: Api, path: Path) -> Iterator[Resource]:
    """The deployments of a file."""
    for said in entries(path, "deployments"):
        reject_unknown_keys(path, said, FIELDS)
        flow = _flow(path, said)
        yield _deployment(api, path, _checked(path, said, flow), flow)


def _deployment(api: Api, path: Path, said: dict[str, Any], flow: "Flow[..., Any]") -> Resource:
    found = api.get(DEPLOYMENT, flow_name=flow.name, deployment_name=said["name"])
    wanted = _desired(path, said, flow)
    theirs = [each for each in (found or {}).get("schedules", []) if not each["slug"]]  # made in the UI

    def save() -> None:
        if not api.get("/work_pools/{name}", name=wanted["work_pool_name"]):
            raise ConfigurationError(
                f"`{path}` names the work pool `{wanted['work_pool_name']}`, which does not exist: "
                "`python -m deployments pools` makes those of `pools.yaml`."
            )
        flow_id = api.send("POST", "/flows/", {"name": flow.name})["id"]
        kept = [{key: each[key] for key in ("slug", "schedule", "active", "parameters")} for each in theirs]
        api.send("POST", "/deployments/", wanted | {"flow_id": flow_id, "schedules": wanted["schedules"] + kept})

    return Resource("deployment", f"{flow.name}/{said['name']}", wanted, _actual(found, wanted), save)


def _desired(path: Path, said: dict[str, Any], flow: "Flow[..., Any]") -> dict[str, Any]:
    """What Prefect should hold; a key that is not in the file and has no obvious default is not in it either."""
    pool = said.get("work_pool") or {}
    reject_unknown_keys(path, pool | {"name": pool.get("name", "")}, POOL)
    wanted = {
        "name": said["name"],
        "entrypoint": said["entrypoint"],
        "description": said.get("description") or flow.description,
        "tags": said.get("tags", []),
        "work_pool_name": pool.get("name", ""),
        "work_queue_name": pool.get("work_queue_name", "default"),
        "job_variables": pool.get("job_variables", {}),
        "parameters": said.get("parameters") or {},
        "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True)
        | {"additionalProperties": False},  # or a misspelt parameter would be refused only by the run
        "enforce_parameter_schema": said.get("enforce_parameter_schema", True),
        "pull_steps": said.get("pull") or [],
        "schedules": [_schedule(path, each) for each in said.get("schedules") or []],
    }
    wanted |= {key: said[key] for key in ("version", "paused") if key in said}
    match said.get("concurrency_limit"):
        case {"limit": limit, **options}:
            wanted |= {"concurrency_limit": limit, "concurrency_options": options}
        case int(limit):
            wanted["concurrency_limit"] = limit
    return json.loads(json.dumps(wanted))


def _actual(found: dict[str, Any] | None, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What Prefect holds, under the same names; of a schedule, what the file speaks of, or that it does so no more."""
    if found is None:
        return None
    there = {each["slug"]: each for each in found["schedules"]}
    schedules = []
    for each in wanted["schedules"]:
        if match := there.get(each["slug"]):
            same = {key: match[key] for key in each}
            same["schedule"] = {key: match["schedule"].get(key) for key in each["schedule"]}
            schedules.append(same)
    gone = there.keys() - {None, *(each["slug"] for each in wanted["schedules"])}
    schedules += [{"slug": slug, "active": there[slug]["active"]} for slug in sorted(gone)]
    limit = (found.get("global_concurrency_limit") or {}).get("limit")
    options = {key: (found.get("concurrency_options") or {}).get(key) for key in wanted.get("concurrency_options", {})}
    pull_steps = found.get("pull_steps") or []
    return found | {
        "schedules": schedules,
        "concurrency_limit": limit,
        "concurrency_options": options,
        "pull_steps": pull_steps,
    }


def _schedule(path: Path, said: dict[str, Any]) -> dict[str, Any]:
    reject_unknown_keys(path, {"name": "a schedule"} | said, ("name", *SCHEDULE))
    if not said.get("slug"):
        raise ConfigurationError(f"`{path}`: every schedule has a `slug`, by which it is known when it changes.")
    when = {key: said[key] for key in SCHEDULE[1:-2] if key in said}
    rest = {"active": said.get("active", True), "parameters": said.get("parameters") or {}}
    return {"slug": said["slug"], "schedule": when, **rest}


def _flow(path: Path, said: dict[str, Any]) -> "Flow[..., Any]":
    entrypoint = said.get("entrypoint", "")
    try:
        return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except (ImportError, MissingFlowError, ScriptError, ValueError) as error:
        reason = error.__cause__ or error
        raise ConfigurationError(
            f"`{path}`: the entrypoint `{entrypoint}` of `{said['name']}` is no flow, such as "
            f"`flows.text_generation.text_generation`: {reason}"
        ) from None


def _checked(path: Path, said: dict[str, Any], flow: "Flow[..., Any]") -> dict[str, Any]:
    """What the file says, as the flow understands it: `limit: "5"` is a number, which Prefect would not take for one.

    Raises:
        ConfigurationError: If the flow cannot be run with these parameters, or with those of a schedule.
    """
    usual, schedules = said.get("parameters") or {}, said.get("schedules") or []
    reject_unknown_keys(path, {"name": said["name"]} | usual, ["name", *flow.parameters.properties])
    if set(flow.parameters.required or []) - usual.keys():
        return said  # whoever starts a run says the rest, and the flow checks it then

    def coerced(given: dict[str, Any]) -> dict[str, Any]:
        try:
            checked = flow.validate_parameters(usual | given)
        except (ParameterTypeError, SignatureMismatchError, ValueError) as error:
            raise ConfigurationError(f"`{path}`: `{said['name']}`: {error}") from None
        return {name: checked[name] if isinstance(checked[name], int | float) else given[name] for name in given}

    schedules = [each | {"parameters": coerced(each.get("parameters") or {})} for each in schedules]
    return said | {"parameters": coerced(usual), "schedules": schedules}
