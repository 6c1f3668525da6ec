"""`python -m deployments`: reconcile block types, pools, queues, limits, automations and deployments with files."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from deployments.errors import ConfigurationError
from deployments.local import serve, worker
from deployments.reconcile.api import connect
from deployments.reconcile.apply import apply
from deployments.reconcile.files import SHIPPED, Folder


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0 if Prefect is in the desired state, 1 if `--check` found drift, 2 for a configuration error.
    """
    words = sys.argv[1:] if arguments is None else arguments
    commands = {"serve": serve.main, "worker": worker.main}
    try:
        if words and words[0] in commands:
            return commands[words[0]](words[1:])
        options = parser().parse_args(words)
        folder = Folder(options.folder, options.names)
        with connect() as api:
            drifted = apply(api, folder, check=options.check)
        return 1 if options.check and drifted else 0
    except ConfigurationError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble(("error: ", "bold red"), str(error)))
        return 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m deployments`."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments",
        description="Make Prefect hold what the files say: the block types of all models, work pools and queues, "
        "limits, automations and deployments. Again and again without harm.",
        epilog="`python -m deployments serve` starts a server, workers and all of this on one machine; "
        "`python -m deployments worker gpu` starts a worker for each GPU of this one.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a file to limit it to (`text_generation`, `limits`), or `blocks`"
    )
    parser.add_argument("--check", action="store_true", help="say what differs and change nothing; exit with 1 if any")
    parser.add_argument(
        "--from", dest="folder", type=Path, default=SHIPPED, metavar="FOLDER", help="the files; the shipped ones if not"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
