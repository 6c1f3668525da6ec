"""A pipeline's steps and edges, checked before anything runs."""

from dataclasses import dataclass, field

from flows.errors import Refused
from llms.strict import nearest
from tasks import GeneratorStep, Step, Task


@dataclass
class Graph:
    """Steps, and which of them follow which, by name."""

    steps: list[Step]
    edges: list[tuple[str, str]]
    counts: dict[str, int | None] = field(default_factory=dict)
    """Rows each source will bring, where that is known; filled in by `check`."""
    checked: bool = False

    @property
    def after(self) -> dict[str, list[Step]]:
        """The steps that follow each."""
        return {step.name: [each for each in self.steps if (step.name, each.name) in self.edges] for step in self.steps}

    @property
    def sources(self) -> list[GeneratorStep]:
        """The steps rows come from."""
        return [step for step in self.steps if isinstance(step, GeneratorStep)]

    @property
    def leaves(self) -> dict[str, str]:
        """The dataset each last step makes: its own name, `default` if it is the only one."""
        last = [name for name, after in self.after.items() if not after]
        return {last[0]: "default"} if len(last) == 1 else {name: name for name in last}

    def check(self) -> None:
        """Refuse what cannot work: the shape, the mappings, the columns, the data. The second time costs nothing.

        Raises:
            Refused: Naming the step and the cure.
        """
        if self.checked:
            return
        if not self.steps:
            raise Refused("the pipeline has no steps: make some inside `with Pipeline() as pipeline:`.")
        for step in self.steps:
            self._check_place(step)
        reached: set[str] = set()
        for source in self.sources:
            reached |= self._check_source(source)
        for step in self.steps:
            self._check_mappings(step)
        if circle := [step.name for step in self.steps if step.name not in reached]:
            raise Refused(f"`{' >> '.join([*circle, circle[0]])}` goes in a circle.")
        self.checked = True

    def _check_place(self, step: Step) -> None:
        before = [source for source, target in self.edges if target == step.name]
        if isinstance(step, GeneratorStep) and before:
            raise Refused(f"`{step.name}` brings rows and takes none: `{before[0]}` cannot come before it.")
        if not isinstance(step, GeneratorStep) and not before:
            raise Refused(
                f"`{step.name}` gets no rows: put a source before it (`LoadDataFromDicts(data=[…]) >> {step.name}`) "
                "or give `run` a `dataset=`."
            )
        if len(before) > 1:
            raise Refused(f"`{step.name}` comes after {' and '.join(f'`{each}`' for each in before)}: one is allowed.")

    def _check_mappings(self, step: Step) -> None:
        for name in step.input_mappings:
            if step.inputs and name not in step.inputs:
                raise Refused(f"`{step.name}` has no input column `{name}`: {nearest(name, step.inputs)}")
        for name in step.output_mappings:
            if step.outputs and name not in (known := [*step.outputs, *_extra(step)]):
                raise Refused(f"`{step.name}` has no output column `{name}`: {nearest(name, known)}")

    def _check_source(self, source: GeneratorStep) -> set[str]:
        """Check that a source has what the steps after it need; the names of all it reaches."""
        after, reached, needed = self.after, {source.name}, dict[str, None]()
        pending = [(step, set[str]()) for step in after[source.name]]
        while pending:
            step, known = pending.pop(0)
            reached.add(step.name)
            needed |= dict.fromkeys(
                column for name in step.inputs if (column := step.input_mappings.get(name, name)) not in known
            )
            known = known | {step.output_mappings.get(name, name) for name in [*step.outputs, *_extra(step)]}
            pending += [(each, known) for each in after[step.name]]
        try:
            own = {renamed: name for name, renamed in source.output_mappings.items()}
            self.counts[source.name] = source.check([own.get(name, name) for name in needed])
        except ValueError as error:
            raise Refused(str(error)) from None
        return reached


def _extra(step: Step) -> list[str]:
    return ["model_name", f"{step.name}_metadata"] if isinstance(step, Task) else []
