"""Steps connected with `>>`: a Prefect flow whose parameters are theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.context import FlowRunContext
from pydantic import ValidationError

from flows import server
from flows.distiset import Distiset
from flows.errors import Refused
from flows.graph import Graph
from flows.parameters import configured, parameters_of, validated
from flows.run import Run
from llms.strict import explain
from tasks import GeneratorStep, Source, Step, load, wiring


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
        self._wiring = wiring.Wiring()

    def __enter__(self) -> "Pipeline":
        self._outer = wiring.current.set(self._wiring)
        return self

    def __exit__(self, *_: object) -> None:
        wiring.current.reset(self._outer)

    @property
    def name(self) -> str:
        """The name given, or one made of the steps'."""
        return self._name or "-".join(["pipeline", *(step.name for step in self.steps)])

    @property
    def steps(self) -> list[Step]:
        """The steps, in the order they were made."""
        return self._wiring.steps

    @property
    def flow(self) -> "Flow[..., Distiset]":
        """The pipeline as a Prefect flow, to serve or deploy: its form shows every step's parameters."""
        return self._flow(None)

    def run(
        self,
        parameters: Mapping[str, Any] | None = None,
        dataset: Source | None = None,
        output: str | Path | None = None,
        max_error_rate: float = 0.1,
        limit: int | None = None,
        use_cache: bool = True,
    ) -> Distiset:
        """Make the dataset: as a flow run of its own, or inside a `@flow` as part of that flow's run.

        Args:
            parameters: Runtime parameters by step, `{"text_generation": {"llm": {"generation_kwargs": {…}}}}`.
            dataset: Rows for the steps that have no step before them: a file, a folder, a list of rows, a Hub id.
            output: Folder for the dataset; a temporary one, gone with the result, when empty.
            max_error_rate: The run fails when a larger share of the rows that enter a step fails in it.
            limit: Rows to take from each source, at most.
            use_cache: Take answers that are in the store already; `False` asks anew, and stores what comes.

        Raises:
            Refused: If something cannot work; nothing was paid for.
            Fatal: If no request can work.
            RunFailed: If too many rows failed.
        """
        pipeline = self if dataset is None else self._fed(dataset)
        given = validated(parameters_of(pipeline.steps), parameters)
        graph = pipeline._graph(given)
        arguments = {
            "parameters": given,
            "output": Path(output) if output else None,
            "max_error_rate": max_error_rate,
            "limit": limit,
            "use_cache": use_cache,
        }
        if FlowRunContext.get():
            return Run(pipeline.name, graph, **arguments).execute()
        server.boot()
        graph.check()
        with server.available():
            return pipeline._flow(graph)(**arguments)

    def dry_run(self, parameters: Mapping[str, Any] | None = None, batch_size: int = 1) -> Distiset:
        """Run the first rows of every source only, to see whether it works before all of it is paid for."""
        return self.run(parameters, limit=batch_size)

    def _flow(self, graph: Graph | None) -> "Flow[..., Distiset]":
        model = parameters_of(self.steps)

        def run(
            parameters: model = model(),  # type: ignore[valid-type]  # noqa: B008
            output: Path | None = None,
            max_error_rate: float = 0.1,
            limit: int | None = None,
            use_cache: bool = True,
        ) -> Distiset:
            given = validated(model, parameters)
            return Run(
                self.name, graph or self._graph(given), given, output, max_error_rate, limit, use_cache
            ).execute()

        run.__doc__ = f"""{self.description or self.name}

        Args:
            parameters: Runtime parameters of every step.
            output: Folder for the dataset.
            max_error_rate: The run fails when a larger share of the rows that enter a step fails in it.
            limit: Rows to take from each source, at most.
            use_cache: Take answers that are in the store already.
        """
        return Flow(run, name=self.name, persist_result=False)

    def _graph(self, given: Mapping[str, Any]) -> Graph:
        """The steps with these parameters, and the edges between them."""
        outer = wiring.current.set(None)  # copies of steps are no steps of the pipeline
        try:
            steps = [configured(step, given.get(step.name, {})) for step in self.steps]
        except ValidationError as error:
            raise Refused(explain(error)) from None
        finally:
            wiring.current.reset(outer)
        return Graph(steps, [(source.name, target.name) for source, target in self._wiring.edges])

    def _fed(self, dataset: Source) -> "Pipeline":
        """The same pipeline with a loader before every step that has none before it."""
        fed = Pipeline(self._name, self.description)
        targets = [target for _, target in self._wiring.edges]
        heads = [step for step in self.steps if not any(step is each for each in targets)]
        if sources := [step.name for step in heads if isinstance(step, GeneratorStep)]:
            raise Refused(f"`dataset=` brings rows, and so does `{sources[0]}`: leave one of them out.")
        outer = wiring.current.set(None)
        loader = load(dataset)
        wiring.current.reset(outer)
        for step in [loader, *self.steps]:
            fed._wiring.add(step)
        fed._wiring.edges = [*((loader, head) for head in heads), *self._wiring.edges]
        return fed
