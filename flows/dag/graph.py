"""The graph of a pipeline's steps: topological order, streams, forks, and the checks before a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from flows.errors import ConfigurationError
from llms.config.strict import did_you_mean
from tasks import CombineOutputs, GeneratorStep, GlobalStep, Join, Step, Task
from tasks.columns.keep_columns import DropsColumns
from tasks.dag import Route
from tasks.routing import Sample


@dataclass
class Graph:
    """Steps and the edges between them, by name."""

    steps: list[Step]
    edges: list[tuple[str, str]]
    routes: dict[tuple[str, str], Route] = field(default_factory=dict)
    """Routes of conditional edges."""
    row_counts: dict[str, int | None] = field(default_factory=dict)
    """Rows of each source, `None` where unknown; set by `check`."""
    checked: bool = False

    @cached_property
    def by_name(self) -> dict[str, Step]:
        """Steps by name."""
        return {step.name: step for step in self.steps}

    @cached_property
    def successors(self) -> dict[str, list[Step]]:
        """Successors of each step, in the order of the edges."""
        return {step.name: [self.by_name[b] for a, b in self.edges if a == step.name] for step in self.steps}

    @cached_property
    def predecessors(self) -> dict[str, list[Step]]:
        """Predecessors of each step, in the order of the edges."""
        return {step.name: [self.by_name[a] for a, b in self.edges if b == step.name] for step in self.steps}

    @property
    def sources(self) -> list[GeneratorStep]:
        """Steps that generate rows."""
        return [step for step in self.steps if isinstance(step, GeneratorStep)]

    @property
    def leaves(self) -> dict[str, str]:
        """Name of the dataset of each last step: the step's name, `default` if there is only one."""
        last = [name for name, after in self.successors.items() if not after]
        return {last[0]: "default"} if len(last) == 1 else {name: name for name in last}

    @cached_property
    def order(self) -> list[Step]:
        """Steps in topological order.

        Raises:
            ConfigurationError: If there is a cycle.
        """
        done: dict[str, Step] = {}
        while len(done) < len(self.steps):
            ready = [
                step
                for step in self.steps
                if step.name not in done and all(each.name in done for each in self.predecessors[step.name])
            ]
            if not ready:
                raise ConfigurationError(f"`{' >> '.join(self._cycle(done))}` goes in a circle.")
            done |= {step.name: step for step in ready}
        return list(done.values())

    @cached_property
    def stream_start(self) -> dict[str, frozenset[str]]:
        """Steps at which the stream of each step starts: sources, or barriers."""
        begins: dict[str, frozenset[str]] = {}
        for step in self.order:
            streams = [begins[each.name] for each in self.predecessors[step.name]]
            parted = isinstance(step, Join) and len(set(streams)) > 1  # its branches come in different streams
            waits = not streams or isinstance(step, GlobalStep) or parted
            begins[step.name] = frozenset([step.name]) if waits else frozenset().union(*streams)
        return begins

    def stream(self, first: Step) -> list[Step]:
        """Return the steps that batches pass from `first` on, `first` included, in topological order."""
        return [step for step in self.order if first.name in self.stream_start[step.name]]

    def is_barrier(self, step: Step) -> bool:
        """Return whether a step needs all rows before it can start."""
        return self.stream_start[step.name] == {step.name} and not isinstance(step, GeneratorStep)

    def fork(self, step: Step) -> Step | None:
        """Return the last common predecessor of a step's branches; `None` if there is none."""
        return self._forks[step.name] if isinstance(step, Join) or len(self.predecessors[step.name]) > 1 else None

    @cached_property
    def _forks(self) -> dict[str, Step | None]:
        through: dict[str, list[Step]] = {}
        forks: dict[str, Step | None] = {}
        for step in self.order:
            paths = [through[each.name] for each in self.predecessors[step.name]]
            common = [each for each in paths[0] if all(each in path for path in paths[1:])] if paths else []
            forks[step.name] = common[-1] if common else None
            through[step.name] = [*common, step]
        return forks

    def check(self) -> None:
        """Check structure, mappings, columns and data, once.

        Raises:
            ConfigurationError: If something cannot work; the message names the step and says what to do.
        """
        if self.checked:
            return
        if not self.steps:
            raise ConfigurationError("the pipeline has no steps: make some inside `with Pipeline() as pipeline:`.")
        for step in self.steps:
            self._check_position(step)
        _ = self.order  # raises if there is a cycle
        for step in self.steps:
            self._check_mappings(step)
            self._check_branches(step)
        needed = self._check_columns()
        for source in self.sources:
            self._check_source(source, needed[source.name])
        self.checked = True

    def _check_position(self, step: Step) -> None:
        before = self.predecessors[step.name]
        if isinstance(step, GeneratorStep) and before:
            raise ConfigurationError(
                f"`{step.name}` brings rows and takes none: `{before[0].name}` cannot come before it."
            )
        if not isinstance(step, GeneratorStep) and not before:
            raise ConfigurationError(
                f"`{step.name}` gets no rows: put a source before it (`LoadDataFromDicts(data=[…]) >> {step.name}`) "
                "or give `run` a `dataset=`."
            )
        if isinstance(step, GlobalStep) and step.input_batch_size:
            raise ConfigurationError(f"`{step.name}` needs all rows at once: leave out its `input_batch_size`.")
        for each in before:
            route = self.routes.get((each.name, step.name))
            if route and isinstance(route.selector, Sample) and route.selector.n > len(route.targets):
                raise ConfigurationError(
                    f"`{each.name} >> sample_n_steps({route.selector.n})` stands before {len(route.targets)} steps: "
                    "give it more of them, or a smaller `n`."
                )

    def _check_mappings(self, step: Step) -> None:
        for name in step.input_mappings:
            if step.inputs and name not in (known := [*step.inputs, *step.optional_inputs]):
                raise ConfigurationError(f"`{step.name}` has no input column `{name}`: {did_you_mean(name, known)}")
        for name in step.output_mappings:
            if step.outputs and name not in (known := [*step.outputs, *_added_columns(step)]):
                raise ConfigurationError(f"`{step.name}` has no output column `{name}`: {did_you_mean(name, known)}")

    def _check_branches(self, step: Step) -> None:
        """Reject branches in which different models fill the same column of the joined row."""
        if not isinstance(step, CombineOutputs):
            return
        filled: dict[str, Step] = {}
        for branch in self.predecessors[step.name]:
            for column, by in self._model_columns(branch, self.fork(step)).items():
                if (other := filled.setdefault(column, by)) is not by:
                    raise ConfigurationError(
                        f"`{other.name}` and `{by.name}` both fill `{column}`, and `{step.name}` makes one row of "
                        f'theirs: let one call it otherwise, `output_mappings={{"{column}": "other_{column}"}}`; '
                        "`GroupColumns` would make a list of them."
                    )

    def _model_columns(self, branch: Step, fork: Step | None) -> dict[str, Step]:
        """Return the columns that models fill in every row of a branch, and the step of each.

        There are none where rows may leave the branch or bypass it: a row may then come through one branch only.
        """
        path: list[Step] = []
        step = branch
        while step is not fork:
            path.append(step)
            before = self.predecessors[step.name]
            if not before:
                break  # a source: the branches do not part anywhere
            if len(before) > 1 or not step.keeps_rows or (before[0].name, step.name) in self.routes:
                return {}
            step = before[0]
        found: dict[str, Step] = {}
        for step in reversed(path):
            if isinstance(step, DropsColumns):
                found = {column: by for column, by in found.items() if step.keeps(column)}
            for column in (step.output_mappings.get(name, name) for name in step.outputs):
                found.pop(column, None)
                if isinstance(step, Task):
                    found[column] = step
        return found

    def _check_columns(self) -> dict[str, dict[str, None]]:
        """Return the columns that each source has to provide.

        Raises:
            ConfigurationError: If a step reads a column that a predecessor has dropped.
        """
        needed: dict[str, dict[str, None]] = {source.name: {} for source in self.sources}
        after: dict[str, list[_Columns]] = {}
        for step in self.order:
            before = list(dict.fromkeys(each for others in self.predecessors[step.name] for each in after[others.name]))
            for column in (step.input_mappings.get(name, name) for name in step.inputs):
                for columns in before:
                    if source := self._source_of(step, column, columns):
                        needed[source][column] = None
            if isinstance(step, GeneratorStep):
                before = [_Columns(sources=frozenset([step.name]))]  # what it makes is for it to say
            elif isinstance(step, Join):
                before = [_columns_after_join(before)]
            after[step.name] = [_columns_after(step, columns) for columns in before]
        return needed

    def _source_of(self, step: Step, column: str, columns: "_Columns") -> str | None:
        """Return the source that must provide a column for a step; `None` if another step makes it."""
        if column in columns.made:
            return None
        narrowed = [each for name in columns.narrowed if isinstance(each := self.by_name[name], DropsColumns)]
        if dropped := next((each for each in narrowed if not each.keeps(column)), None):
            brought = {name for source in columns.sources for name in self._source_columns(source)}
            left = columns.made | {name for name in brought if all(each.keeps(name) for each in narrowed)}
            raise ConfigurationError(
                f"`{step.name}` reads `{column}`, which rows have no longer after `{dropped.name}`: "
                f"{did_you_mean(column, left)}"
            )
        first, *others = sorted(columns.sources)
        return next((each for each in others if column in self._source_columns(each)), first)

    def _source_columns(self, source: str) -> list[str]:
        step = self.by_name[source]
        try:
            return [step.output_mappings.get(name, name) for name in step.outputs]
        except ValueError as error:
            raise ConfigurationError(str(error)) from None

    def _check_source(self, source: GeneratorStep, needed: Iterable[str]) -> None:
        """Check that a source can be read and has the columns its successors need."""
        try:
            own = {renamed: name for name, renamed in source.output_mappings.items()}
            self.row_counts[source.name] = source.check([own.get(name, name) for name in needed])
        except ValueError as error:
            raise ConfigurationError(str(error)) from None

    def _cycle(self, outside: dict[str, Step]) -> Sequence[str]:
        """Return the names of the steps of a cycle."""
        path = [next(step.name for step in self.steps if step.name not in outside)]
        while path[-1] not in path[:-1]:
            path.append(next(each.name for each in self.predecessors[path[-1]] if each.name not in outside))
        return path[path.index(path[-1]) :][::-1]


@dataclass(frozen=True)
class _Columns:
    """Columns of the rows after a step, as far as they are known.

    Attributes:
        made: Columns that steps make, or pass on by name.
        sources: Sources, one of which provides the columns that no step makes.
        narrowed: Steps that have dropped columns.
    """

    made: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    narrowed: tuple[str, ...] = ()


def _columns_after(step: Step, columns: _Columns) -> _Columns:
    """Return the columns after one more step."""
    outputs = [] if isinstance(step, GeneratorStep) else [*step.outputs, *_added_columns(step)]
    made = frozenset(step.output_mappings.get(name, name) for name in outputs)
    if not isinstance(step, DropsColumns):
        return replace(columns, made=columns.made | made)
    kept = frozenset(name for name in columns.made if step.keeps(name))
    return replace(columns, made=kept | made, narrowed=(*columns.narrowed, step.name))


def _columns_after_join(branches: Sequence[_Columns]) -> _Columns:
    """Return the columns of rows joined from several branches; a column may come from any of them."""
    return _Columns(
        frozenset().union(*(branch.made for branch in branches)),
        frozenset().union(*(branch.sources for branch in branches)),
        tuple(name for name in branches[0].narrowed if all(name in each.narrowed for each in branches)),
    )


def _added_columns(step: Step) -> list[str]:
    return ["model_name", f"{step.name}_metadata"] if isinstance(step, Task) else []
