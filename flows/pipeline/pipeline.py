"""Steps connected with `>>`: a Prefect flow whose parameters are theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.results import ResultStorage
from prefect.task_runners import TaskRunner
from pydantic import ValidationError

from flows.dag import diagram
from flows.dag.graph import Graph
from flows.dataset.distiset import Distiset
from flows.errors import ConfigurationError
from flows.execution.run import Run
from flows.pipeline import document
from flows.pipeline.flow import flow
from flows.preview import approval
from flows.preview.estimate import Estimate
from flows.runtime import server
from flows.settings.run_settings import OutputFormat
from flows.settings.step_parameters import parameters_model, to_json, validate_parameters, with_parameters
from llms.config.strict import StrictModel, format_validation_error
from tasks import GeneratorStep, Source, Step, dag, load_data


class Pipeline:
    """Steps connected with `>>` inside a `with`; `run` makes the dataset.

    Args:
        name: What the flow is called; after its steps when empty.
        description: What it is for, shown in Prefect's UI.

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
        self._wiring = dag.DagBuilder[Step]()

    def __enter__(self) -> "Pipeline":
        self._outer = dag.current.set(self._wiring)
        return self

    def __exit__(self, *_: object) -> None:
        dag.current.reset(self._outer)
        del self._outer  # it cannot be pickled, and a served flow is

    @property
    def name(self) -> str:
        """The name given, or one made of the steps'."""
        return self._name or "-".join(["pipeline", *(step.name for step in self.steps)])

    @property
    def steps(self) -> list[Step]:
        """The steps, in the order they were made."""
        return self._wiring.steps

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Pipeline":
        """The pipeline in a file. Nothing in it is run: steps and models are found among those that are imported.

        Raises:
            ConfigurationError: Naming the file, the step, and what to write instead.
        """
        read = document.read(path)
        pipeline = cls(read.name, read.description)
        pipeline._wiring = read.build()
        return pipeline

    def to_yaml(self) -> str:
        """The pipeline as text: steps, what differs from their defaults, edges. It holds no secrets.

        Raises:
            ConfigurationError: If something cannot be written down, such as a function.
        """
        return document.write(self._name, self.description, self._wiring)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to a file, for `from_yaml` and `python -m flows.run p.yaml`."""
        if Path(path).suffix not in (".yaml", ".yml"):
            raise ConfigurationError(
                f"pipelines are written as YAML: call the file `{Path(path).with_suffix('.yaml')}`."
            )
        text = self.to_yaml()
        Path(path).write_text(text, encoding="utf-8")

    def draw(self, path: str | Path | None = None) -> str:
        """The pipeline as a Mermaid diagram; with a `path`, also an image: `p.svg`, or the diagram itself, `p.mmd`."""
        return diagram.draw(Graph(self.steps, *self._named_edges()), path)

    @property
    def flow(self) -> "Flow[..., Distiset]":
        """The pipeline as a Prefect flow, to serve or deploy: its form shows every step's parameters."""
        return self._flow(None, parameters_model(self.steps))

    def run(
        self,
        parameters: Mapping[str, Any] | None = None,
        dataset: Source | None = None,
        output: str | Path | None = None,
        max_error_rate: float = 0.1,
        limit: int | None = None,
        use_cache: bool = True,
        max_cost: float | None = None,
        max_tokens_total: int | None = None,
        output_format: OutputFormat = "parquet",
        dry_run: int | None = None,
        approve: bool = False,
        task_runner: TaskRunner[Any] | None = None,
        result_storage: ResultStorage | None = None,
    ) -> Distiset:
        """Make the dataset: as a flow run of its own, or inside a `@flow` as part of that flow's run.

        Args:
            parameters: Runtime parameters by step, `{"text_generation": {"llm": {"generation_kwargs": {…}}}}`.
            dataset: Rows for the steps that have no step before them: a file, a folder, rows, a table, a Hub id.
            output: Folder for the dataset; a temporary one, gone with the result, when empty.
            max_error_rate: The run fails when a larger share of the rows that enter a step fails in it.
            limit: Rows to take from each source, at most.
            use_cache: Take answers that are in the store already; `False` asks anew, and stores what comes.
            max_cost: Dollars this run may spend. When they are spent, what is in flight is finished and nothing new
                begins; the same run with more goes on from there.
            max_tokens_total: Tokens this run may spend, input and output together.
            output_format: What the files of the dataset are: Parquet, or JSONL that people read.
            dry_run: Take so many rows of every source only, and estimate from them what all would take; the dataset
                goes with the result, whatever `output` says.
            approve: Ask before all of it is paid for: the run waits, with an estimate from its first rows, until
                somebody gives it a budget or says no; see `flows.preview.approval`. What those rows asked is
                not asked again.
            task_runner: Where batches are worked on, such as a `DaskTaskRunner`; in threads of this process when empty.
            result_storage: Where what steps made is kept for other runs: a saved block, or a `Path`; where Prefect's
                settings say when empty.

        Raises:
            ConfigurationError: If something cannot work; nothing was paid for.
            Fatal: If no request can work.
            BudgetExceeded: If it has spent what it may.
            RunFailed: If too many rows failed.
            ApprovalDeclined: If somebody said no.
        """
        pipeline = self if dataset is None else self._with_dataset(dataset)
        model = parameters_model(pipeline.steps)
        given = validate_parameters(model, parameters)
        graph = pipeline._graph(given)
        arguments = {
            "parameters": given,
            "output": Path(output) if output else None,
            "max_error_rate": max_error_rate,
            "limit": limit,
            "use_cache": use_cache,
            "max_cost": max_cost,
            "max_tokens_total": max_tokens_total,
            "output_format": output_format,
            "dry_run": dry_run,
        }
        where = {"task_runner": task_runner, "result_storage": result_storage}
        where = {name: value for name, value in where.items() if value is not None}
        if FlowRunContext.get():
            if where:
                name = next(iter(where))
                raise ConfigurationError(f"inside a `@flow` its own `{name}` is used: say it there, `@flow({name}=…)`.")
            return pipeline._execute(graph, approve, **arguments)
        server.boot()
        graph.check()
        with server.available():
            return pipeline._flow(graph, model, **where)(approve=approve, **arguments)

    def dry_run(self, parameters: Mapping[str, Any] | None = None, batch_size: int = 1) -> Distiset:
        """Run the first rows of every source only, to see whether it works, and what all of them would take.

        Example:
            ```python
            dataset = pipeline.dry_run(batch_size=5)
            dataset.preview  # what was sent for each row, and what came
            print(dataset.estimate.markdown())  # requests, tokens, dollars and time for all rows
            ```

        Args:
            parameters: Runtime parameters by step.
            batch_size: Rows to take from each source. What they ask is not asked again when all are run.
        """
        return self.run(parameters, dry_run=batch_size)

    def _flow(self, graph: Graph | None, model: type[StrictModel], **where: Any) -> "Flow[..., Distiset]":
        def run(
            parameters: model = model(),  # type: ignore[valid-type]  # noqa: B008
            output: Path | None = None,
            max_error_rate: float = 0.1,
            limit: int | None = None,
            use_cache: bool = True,
            max_cost: float | None = None,
            max_tokens_total: int | None = None,
            output_format: OutputFormat = "parquet",
            dry_run: int | None = None,
            approve: bool = False,
        ) -> Distiset:
            given = validate_parameters(model, parameters)
            return self._execute(
                graph or self._graph(given),
                approve,
                parameters=given,
                output=output,
                max_error_rate=max_error_rate,
                limit=limit,
                use_cache=use_cache,
                max_cost=max_cost,
                max_tokens_total=max_tokens_total,
                output_format=output_format,
                dry_run=dry_run,
            )

        run.__doc__ = f"""{self.description or self.name}

        Args:
            parameters: Runtime parameters of every step.
            output: Folder for the dataset.
            max_error_rate: The run fails when a larger share of the rows that enter a step fails in it.
            limit: Rows to take from each source, at most.
            use_cache: Take answers that are in the store already.
            max_cost: Dollars this run may spend; the same run with more goes on from there.
            max_tokens_total: Tokens this run may spend, input and output together.
            output_format: What the files of the dataset are.
            dry_run: Take so many rows of every source only, and estimate from them what all would take.
            approve: Wait, with an estimate from the first rows, until somebody gives the run a budget or says no.
        """
        return flow(run, name=self.name, **where)

    def _execute(self, graph: Graph, approve: bool, parameters: Mapping[str, Any], **settings: Any) -> Distiset:
        """Make the dataset in the flow run we are in, once it is approved."""
        settings["parameters"] = to_json(parameters)

        def estimate() -> Estimate:
            few: dict[str, Any] = {"dry_run": approval.SAMPLE_ROWS}
            sample = Run(self.name, self._graph(parameters), **settings | few)
            return cast(Estimate, sample.execute().estimate)

        if approve and not settings["dry_run"]:
            settings |= approval.wait_for_approval(estimate, settings["max_cost"], settings["max_tokens_total"])
        return Run(self.name, graph, **settings).execute()

    def _graph(self, given: Mapping[str, Any]) -> Graph:
        """The steps with these parameters, and the edges between them."""
        outer = dag.current.set(None)  # copies of steps are no steps of the pipeline
        try:
            steps = [with_parameters(step, given.get(step.name, {})) for step in self.steps]
        except ValidationError as error:
            raise ConfigurationError(format_validation_error(error)) from None
        finally:
            dag.current.reset(outer)
        return Graph(steps, *self._named_edges())

    def _named_edges(self) -> tuple[list[tuple[str, str]], dict[tuple[str, str], dag.Route]]:
        edges = [(source.name, target.name) for source, target in self._wiring.edges]
        return edges, dict(self._wiring.routes)

    def _with_dataset(self, dataset: Source) -> "Pipeline":
        """The same pipeline with a loader before every step that has none before it."""
        fed = Pipeline(self._name, self.description)
        targets = [target for _, target in self._wiring.edges]
        heads = [step for step in self.steps if not any(step is each for each in targets)]
        if sources := [step.name for step in heads if isinstance(step, GeneratorStep)]:
            raise ConfigurationError(f"`dataset=` brings rows, and so does `{sources[0]}`: leave one of them out.")
        outer = dag.current.set(None)
        loader = load_data(dataset)
        dag.current.reset(outer)
        for step in [loader, *self.steps]:
            fed._wiring.add(step)
        fed._wiring.edges = [*((loader, head) for head in heads), *self._wiring.edges]
        fed._wiring.routes = self._wiring.routes
        return fed
