"""Run a pipeline from a YAML file: `python -m flows.run p.yaml --output made --limit 10`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack

from prefect import Flow
from rich.console import Console
from rich.text import Text

from flows import Distiset, Pipeline
from flows.cli import main
from flows.errors import ConfigurationError
from flows.pipeline import document, flow
from flows.settings import RunSettingsArgs
from tasks import Source

USAGE = """usage: python -m flows.run FILE.yaml [--import MODULE] [options]

Make the dataset of a pipeline that `pipeline.save("FILE.yaml")` wrote.
`python -m flows.run FILE.yaml --help` shows its options."""

IMPORT_OPTION = "--import"


def flow_of(path: Path) -> "Flow[..., Distiset]":
    """Return a flow that runs the pipeline in a file; it has the parameters of the shipped flows.

    Raises:
        ConfigurationError: If the file holds no pipeline, or names an unknown class.
    """
    pipeline = document.read(path)
    pipeline.check()

    def run(
        data: Source | None = None,
        parameters: dict[str, dict[str, Any]] | None = None,
        **settings: Unpack[RunSettingsArgs],
    ) -> Distiset:
        return Pipeline.from_yaml(path).run(parameters, data, **settings)

    description = (pipeline.description or f"Run the pipeline in `{path}`.").strip()
    steps = ", ".join(f"`{name}` ({fields.get('class')})" for name, fields in pipeline.steps.items())
    run.__doc__ = f"""{description}

Its steps: {steps}. Where one of
them is your own, name the module it is in: `{IMPORT_OPTION} MODULE`.

Args:
    data: Rows for the steps that have none before them: a file, a folder, a Hub id, or the rows.
    limit: Rows to take from each source, at most.
    parameters: Runtime parameters by step, such as `text_generation.llm.generation_kwargs.temperature`.
"""
    run.__module__ = f"flows.run {path}"  # the command that `--help` shows after `python -m`
    return flow(run, Path("outputs") / path.stem, name=pipeline.name or path.stem)


def run(arguments: Sequence[str]) -> None:
    """Run the pipeline in the file that is the first argument, with the options that follow."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    try:
        options = _import_modules(arguments[1:])
        pipeline_flow = flow_of(Path(arguments[0]))
    except ConfigurationError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble(("error: ", "bold red"), f"{error}"))
        sys.exit(2)
    main(pipeline_flow, options)


def _import_modules(arguments: Sequence[str]) -> list[str]:
    """Import the modules given by `--import`, so that their steps and models are known; return the other arguments.

    Raises:
        ConfigurationError: If there is no such module.
    """
    others, remaining = list[str](), iter(arguments)
    for argument in remaining:
        option, equals, name = argument.partition("=")
        if option != IMPORT_OPTION:
            others.append(argument)
            continue
        name = name if equals else next(remaining, "")
        try:
            import_module(name)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"`{IMPORT_OPTION} {name}`: {error}. It names a module, `my_steps` for `my_steps.py` here."
            ) from None
    return others


if __name__ == "__main__":
    run(sys.argv[1:])
