"""What the files say, made so in Prefect: one line for each thing, and twice is harmless."""

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from deployments.reconcile import automations, blocks, flow_deployments, limits, pools
from deployments.reconcile.api import Api
from deployments.reconcile.files import Folder
from deployments.reconcile.resource import Resource

COLOURS = {"created": "green", "updated": "yellow", "unchanged": "dim"}


def apply(api: Api, folder: Folder, check: bool = False, out: Console | None = None) -> int:
    """Make what is missing and change what differs; with `check`, say it only.

    Args:
        api: Where to.
        folder: What from.
        check: Change nothing.
        out: Where the lines go.

    Returns:
        How many things differ, or differed.
    """
    out = out or Console(soft_wrap=True, highlight=False)
    count = 0
    for thing in resources(api, folder):
        state, differences = thing.state, thing.differences
        if state != "unchanged":
            count += 1
            if not check:
                thing.save()
        said = {"created": "missing", "updated": "differs"}.get(state, state) if check else state
        why = "; ".join(differences) if state == "updated" else ""
        line = Text.assemble((f"{said:<10}", COLOURS[state]), f" {thing.kind:<11} {thing.name}")
        for more in filter(None, (why, thing.note)):
            line.append(f"  ({more})", "dim")
        out.print(line)
    return count


def resources(api: Api, folder: Folder) -> Iterator[Resource]:
    """All that the folder speaks of, each read just before its turn: pools come before what runs on them."""
    if folder.wants("blocks"):
        yield from blocks.resources(api)
    if path := folder.file("pools"):
        yield from pools.resources(api, path)
    if path := folder.file("limits"):
        yield from limits.resources(api, path)
    for path in folder.deployments():
        yield from flow_deployments.resources(api, path)
    yield from automations.resources(api, folder.automations())
