"""A pipeline in a file, from the shell: `python -m flows.run p.yaml --output made --limit 10`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack

from prefect import Flow
from rich.console import Console
from rich.text import Text

from flows.cli.main import main
from flows.dataset.distiset import Distiset
from flows.errors import ConfigurationError
from flows.pipeline import document
from flows.pipeline.flow import flow
from flows.pipeline.pipeline import Pipeline
from flows.settings.run_settings import RunSettingsArgs
from tasks import Source

USAGE = """usage: python -m flows.run FILE.yaml [--import MODULE] [options]

Make the dataset of a pipeline that `pipeline.save("FILE.yaml")` wrote.
`python -m flows.run FILE.yaml --help` shows its options."""

IMPORT = "--import"


def flow_of(path: Path) -> "Flow[..., Distiset]":
    """The pipeline in a file as a flow, its parameters those of `Pipeline.run`.

    Raises:
        ConfigurationError: If the file holds none, or names a class that is not known.
    """
    read = document.read(path)
    read.check()

    def run(
        data: Source | None = None,
        parameters: dict[str, dict[str, Any]] | None = None,
        **settings: Unpack[RunSettingsArgs],
    ) -> Distiset:
        return Pipeline.from_yaml(path).run(parameters, data, **settings)

    about = (read.description or f"Run the pipeline in `{path}`.").strip()
    run.__doc__ = f"""{about}

Its steps: {", ".join(f"`{name}` ({fields.get('class')})" for name, fields in read.steps.items())}. Where one of
them is your own, name the module it is in: `{IMPORT} MODULE`.

Args:
    data: Rows for the steps that have none before them: a file, a folder, a Hub id, or the rows.
    limit: Rows to take from each source, at most.
    parameters: Runtime parameters by step, such as `text_generation.llm.generation_kwargs.temperature`.
"""
    run.__module__ = f"flows.run {path}"  # what the help says after `python -m`
    return flow(run, Path("outputs") / path.stem, name=read.name or path.stem)


def run(arguments: Sequence[str]) -> None:
    """Run the pipeline the first argument names, with the options behind it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    try:
        options = _imported(arguments[1:])
        named = flow_of(Path(arguments[0]))
    except ConfigurationError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble(("error: ", "bold red"), f"{error}"))
        sys.exit(2)
    main(named, options)


def _imported(arguments: Sequence[str]) -> list[str]:
    """Import the modules named, whose steps and models are known from then on; the arguments that are left.

    Raises:
        ConfigurationError: If there is no such module.
    """
    left, given = list[str](), iter(arguments)
    for argument in given:
        option, equals, name = argument.partition("=")
        if option != IMPORT:
            left.append(argument)
            continue
        name = name if equals else next(given, "")
        try:
            import_module(name)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"`{IMPORT} {name}`: {error}. It names a module, `my_steps` for `my_steps.py` here."
            ) from None
    return left


if __name__ == "__main__":
    run(sys.argv[1:])
