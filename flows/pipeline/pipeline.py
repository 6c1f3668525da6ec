"""A pipeline: steps connected with `>>`, run as a Prefect flow whose parameters are their fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack, cast

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.results import ResultStorage
from prefect.task_runners import TaskRunner
from pydantic import ValidationError

from flows.dag import diagram
from flows.dag.graph import Graph
from flows.dataset.distiset import Distiset
from flows.dataset.staging import check_output
from flows.errors import ConfigurationError
from flows.execution.run import Run
from flows.pipeline import document
from flows.pipeline.flow import flow
from flows.preview import approval
from flows.preview.estimate import Estimate
from flows.runtime import server
from flows.settings.run_settings import RunSettings, RunSettingsArgs
from flows.settings.step_parameters import parameters_model, to_json, validate_parameters, with_parameters
from llms.config.redaction import hide_secrets
from llms.config.strict import StrictModel, format_validation_error
from tasks import GeneratorStep, Source, Step, dag, load_data


class Pipeline:
    """Steps connected with `>>` inside a `with`; `run` makes the dataset.

    Args:
        name: Name of the flow; made of the steps' names by default.
        description: Description of the flow in Prefect's UI.

    Example:
        ```python
        from flows import Pipeline
        from llms import LlamaServerLLM
        from tasks import LoadDataFromDicts, TextGeneration

        with Pipeline(name="capitals") as pipeline:
            data = LoadDataFromDicts(data=[{"instruction": "What's the capital of Spain?"}])
            data >> TextGeneration(llm=LlamaServerLLM())

        dataset = pipeline.run()
        dataset["default"]["train"][0]["generation"]
        ```
    """

    def __init__(self, name: str | None = None, description: str | None = None) -> None:
        self._name = name
        self.description = description
        self._dag = dag.DagBuilder[Step]()

    def __enter__(self) -> "Pipeline":
        self._outer = dag.current.set(self._dag)
        return self

    def __exit__(self, *_: object) -> None:
        dag.current.reset(self._outer)
        del self._outer  # it cannot be pickled, and a served flow is

    @property
    def name(self) -> str:
        """Name of the flow."""
        return self._name or "-".join(["pipeline", *(step.name for step in self.steps)])

    @property
    def steps(self) -> list[Step]:
        """Steps, in the order they were created."""
        return self._dag.steps

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Pipeline":
        """Read a pipeline from a file. No code runs: classes are looked up among the imported ones.

        Raises:
            ConfigurationError: If it cannot be read; the message names the file, the step, and what to write instead.
        """
        read = document.read(path)
        pipeline = cls(read.name, read.description)
        pipeline._dag = read.build()
        return pipeline

    def to_yaml(self) -> str:
        """Return the pipeline as YAML: steps with their non-default fields, and edges; no secrets.

        Raises:
            ConfigurationError: If something cannot be serialized, such as a function.
        """
        return document.write(self._name, self.description, self._dag)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to a file, for `from_yaml` and `python -m flows.run p.yaml`."""
        if Path(path).suffix not in (".yaml", ".yml"):
            raise ConfigurationError(
                f"pipelines are written as YAML: call the file `{Path(path).with_suffix('.yaml')}`."
            )
        text = self.to_yaml()
        Path(path).write_text(text, encoding="utf-8")

    def draw(self, path: str | Path | None = None) -> str:
        """Return a Mermaid diagram; with a `path`, also write it, as an image (`p.svg`) or as text (`p.mmd`)."""
        return diagram.draw(Graph(self.steps, *self._edges_and_routes()), path)

    @property
    def flow(self) -> "Flow[..., Distiset]":
        """Prefect flow to serve or deploy; its form shows every step's parameters."""
        return self._make_flow(None, parameters_model(self.steps))

    def run(
        self,
        parameters: Mapping[str, Any] | None = None,
        dataset: Source | None = None,
        task_runner: TaskRunner[Any] | None = None,
        result_storage: ResultStorage | None = None,
        **settings: Unpack[RunSettingsArgs],
    ) -> Distiset:
        """Make the dataset in a flow run of its own; inside a `@flow`, as part of that flow's run.

        Args:
            parameters: Runtime parameters by step, `{"text_generation": {"llm": {"generation_kwargs": {…}}}}`.
            dataset: Rows for the first steps, those without a predecessor: a file, a folder, rows, a table, a Hub id.
            task_runner: Where batches run, such as a `DaskTaskRunner`; in threads of this process by default.
            result_storage: Where results of steps are kept for other runs: a saved block, or a `Path`; by default as
                Prefect's settings say.
            **settings: Run settings, described in `flows.settings.run_settings.RunSettings`: `output` (a temporary
                folder by default, deleted with the returned dataset), `limit`, `max_cost` …

        Raises:
            ConfigurationError: If something cannot work; nothing was paid for.
            Fatal: If no request can work.
            BudgetExceeded: If the budget is spent.
            RunFailed: If too many rows failed.
            ApprovalDeclined: If the run was not approved.
        """
        run_settings = _check_settings(settings)
        pipeline = self if dataset is None else self._with_dataset(dataset)
        model = parameters_model(pipeline.steps)
        given = validate_parameters(model, parameters)
        graph = pipeline._build_graph(given)
        options = {"task_runner": task_runner, "result_storage": result_storage}
        options = {name: value for name, value in options.items() if value is not None}
        if FlowRunContext.get():
            if options:
                name = next(iter(options))
                raise ConfigurationError(f"inside a `@flow` its own `{name}` is used: say it there, `@flow({name}=…)`.")
            return pipeline._run_in_flow(graph, given, run_settings)
        server.boot()
        graph.check()
        with server.available():
            return pipeline._make_flow(graph, model, **options)(parameters=given, **run_settings.model_dump())

    def dry_run(self, parameters: Mapping[str, Any] | None = None, batch_size: int = 1) -> Distiset:
        """Run the first rows of every source, to see whether it works and to estimate what all rows would take.

        Example:
            ```python
            dataset = pipeline.dry_run(batch_size=5)
            dataset.preview  # what was sent for each row, and what came
            print(dataset.estimate.markdown())  # requests, tokens, dollars and time for all rows
            ```

        Args:
            parameters: Runtime parameters by step.
            batch_size: Rows to take from each source. Their answers are stored, and not requested again later.
        """
        return self.run(parameters, dry_run=batch_size)

    def _make_flow(self, graph: Graph | None, model: type[StrictModel], **options: Any) -> "Flow[..., Distiset]":
        """Return a flow with these options of Prefect's, whose `parameters` are a `model`."""

        def run(parameters: Any, **settings: Unpack[RunSettingsArgs]) -> Distiset:
            given = validate_parameters(model, parameters)
            return self._run_in_flow(graph or self._build_graph(given), given, _check_settings(settings))

        run.__annotations__["parameters"] = model
        run.__defaults__ = (model(),)
        run.__doc__ = f"""{self.description or self.name}

        Args:
            parameters: Runtime parameters of every step.
            limit: Rows to take from each source, at most.
        """
        return flow(run, None, name=self.name, **options)

    def _run_in_flow(self, graph: Graph, parameters: Mapping[str, Any], settings: RunSettings) -> Distiset:
        """Make the dataset in the current flow run, after approval if the settings ask for one."""
        recorded = hide_secrets(to_json(parameters))

        def estimate() -> Estimate:
            sample = settings.model_copy(update={"dry_run": approval.SAMPLE_ROWS})
            return cast(Estimate, Run(self.name, self._build_graph(parameters), recorded, sample).execute().estimate)

        if settings.output and not settings.dry_run:
            check_output(settings.output)  # before the rows of an estimate are paid for
        if settings.approve and not settings.dry_run:
            budget = approval.wait_for_approval(estimate, settings.max_cost, settings.max_tokens_total)
            settings = settings.model_copy(update=budget)
        return Run(self.name, graph, recorded, settings).execute()

    def _build_graph(self, parameters: Mapping[str, Any]) -> Graph:
        """Return a graph of copies of the steps with these parameters."""
        outer = dag.current.set(None)  # copies of steps are no steps of the pipeline
        try:
            steps = [with_parameters(step, parameters.get(step.name, {})) for step in self.steps]
        except ValidationError as error:
            raise ConfigurationError(format_validation_error(error)) from None
        finally:
            dag.current.reset(outer)
        return Graph(steps, *self._edges_and_routes())

    def _edges_and_routes(self) -> tuple[list[tuple[str, str]], dict[tuple[str, str], dag.Route]]:
        edges = [(source.name, target.name) for source, target in self._dag.edges]
        return edges, dict(self._dag.routes)

    def _with_dataset(self, dataset: Source) -> "Pipeline":
        """Return a copy of the pipeline with a loader before every step without a predecessor."""
        pipeline = Pipeline(self._name, self.description)
        targets = [target for _, target in self._dag.edges]
        first = [step for step in self.steps if not any(step is each for each in targets)]
        if sources := [step.name for step in first if isinstance(step, GeneratorStep)]:
            raise ConfigurationError(f"`dataset=` brings rows, and so does `{sources[0]}`: leave one of them out.")
        outer = dag.current.set(None)
        loader = load_data(dataset)
        dag.current.reset(outer)
        for step in [loader, *self.steps]:
            pipeline._dag.add(step)
        pipeline._dag.edges = [*((loader, step) for step in first), *self._dag.edges]
        pipeline._dag.routes = self._dag.routes
        return pipeline


def _check_settings(settings: RunSettingsArgs) -> RunSettings:
    """Return the settings as one object.

    Raises:
        ConfigurationError: If a name is unknown or a value does not fit.
    """
    try:
        return RunSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigurationError(format_validation_error(error)) from None
