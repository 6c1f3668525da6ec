"""Idempotent reconciliation of all resources of a folder, with one line of output for each."""

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from deployments.reconcile import automations, blocks, flow_deployments, limits, pools
from deployments.reconcile.api import Api
from deployments.reconcile.files import Folder
from deployments.reconcile.resource import Resource

COLOURS = {"created": "green", "updated": "yellow", "unchanged": "dim"}


def apply(api: Api, folder: Folder, check: bool = False, out: Console | None = None) -> int:
    """Create missing resources and update those that drifted.

    Args:
        api: The server.
        folder: The files.
        check: Only report drift.
        out: The console for the report.

    Returns:
        The number of resources that were missing or drifted.
    """
    out = out or Console(soft_wrap=True, highlight=False)
    count = 0
    for resource in resources(api, folder):
        state, differences = resource.state, resource.differences
        if state != "unchanged":
            count += 1
            if not check:
                resource.save()
        label = {"created": "missing", "updated": "differs"}.get(state, state) if check else state
        drift = "; ".join(differences) if state == "updated" else ""
        line = Text.assemble((f"{label:<10}", COLOURS[state]), f" {resource.kind:<11} {resource.name}")
        for detail in filter(None, (drift, resource.note)):
            line.append(f"  ({detail})", "dim")
        out.print(line)
    return count


def resources(api: Api, folder: Folder) -> Iterator[Resource]:
    """Yield the resources of a folder lazily, in the order of their dependencies: pools before deployments."""
    if folder.selects("blocks"):
        yield from blocks.resources(api)
    if path := folder.file("pools"):
        yield from pools.resources(api, path)
    if path := folder.file("limits"):
        yield from limits.resources(api, path)
    for path in folder.deployments():
        yield from flow_deployments.resources(api, path)
    yield from automations.resources(api, folder.automations())
