"""What every step here is: a pydantic class from rows to rows that runs as a Prefect task."""

import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import prefect
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from llms import AnyLLM, Fatal
from llms.strict import Strict
from llms.typing import ChatType, GenerateOutput
from tasks import wiring
from tasks.typing import Failure, Outcome, Row, RowsFailed, Spending


class Step(Strict, ABC):
    """Rows in, rows out. A subclass gives `process`, and says which columns it reads and adds.

    Its fields are its configuration and its runtime parameters: they are shown as a form, coerced from strings, and
    a misspelt one is refused.
    """

    name: str = Field(
        default="", pattern=r"^[A-Za-z0-9_-]*$", description="What the step is called; after its class when empty."
    )
    input_mappings: dict[str, str] = Field(
        default_factory=dict, description="Where the step's input columns are found: `{its name: the row's name}`."
    )
    output_mappings: dict[str, str] = Field(
        default_factory=dict, description="What its output columns are to be called: `{its name: another name}`."
    )
    input_batch_size: int | None = Field(
        default=None, gt=0, description="Rows `process` gets at once, at most; a whole batch when empty."
    )

    def model_post_init(self, context: Any) -> None:
        """Take a name and a place in the pipeline being declared."""
        if not self.name:
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__)
            self.name = words.lower()
            self.model_fields_set.discard("name")  # nobody gave it: a pipeline may number it
        if pipeline := wiring.current.get():
            pipeline.add(self)

    @property
    def inputs(self) -> Sequence[str]:
        """The columns every row must have."""
        return ()

    @property
    def outputs(self) -> Sequence[str]:
        """The columns it adds."""
        return ()

    def load(self) -> None:
        """Acquire what is slow to acquire, and say what is missing. A pipeline calls it by itself."""

    def unload(self) -> None:
        """Let go of it."""

    @abstractmethod
    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Turn a batch of rows into rows, yielded in one or several lists."""

    def run(self, rows: list[Row]) -> Outcome:
        """Process a batch so that one bad row costs one row.

        Raises:
            Fatal: If no row can work.
        """
        started, outcome = time.perf_counter(), Outcome()
        size = self.input_batch_size or max(len(rows), 1)
        for start in range(0, len(rows), size):
            outcome.add(self._run([Row.of(row) for row in rows[start : start + size]]))
        outcome.seconds = time.perf_counter() - started
        return outcome

    def task(self, guard: Callable[[], None] = lambda: None) -> "prefect.Task[..., Outcome]":
        """This step as a Prefect task, `(batch, number) -> Outcome`; the run is called `<name>-<number>`.

        Args:
            guard: Called before each run; it raises to keep the run from starting.
        """

        def work(batch: list[Row] | Outcome, number: int = 0) -> Outcome:
            guard()
            return self.run(batch.rows if isinstance(batch, Outcome) else batch)

        return prefect.Task(
            work,
            name=self.name,
            description=type(self).__doc__,
            task_run_name=f"{self.name}-{{number}}",
            persist_result=False,
            cache_policy=NO_CACHE,
        )

    def __rshift__(self, others: "Step | list[Step]") -> "Step | list[Step]":
        """`a >> b`, `a >> [b, c]`: what `a` makes goes to each."""
        for other in others if isinstance(others, list) else [others]:
            self._pipeline().connect(self, other)
        return others

    def __rrshift__(self, others: "list[Step]") -> "Step":
        """`[a, b] >> c`: what each makes goes to `c`."""
        for other in others:
            self._pipeline().connect(other, self)
        return self

    def _pipeline(self) -> wiring.Wiring:
        if pipeline := wiring.current.get():
            return pipeline
        raise ValueError(f"`{self.name}`: steps are connected inside `with Pipeline() as pipeline:`.")

    def _run(self, rows: list[Row]) -> Outcome:
        try:
            made = [row for chunk in self.process([self._view(row) for row in rows]) for row in chunk]
        except RowsFailed as error:
            return Outcome(error.rows, error.failures)
        except Fatal:
            raise
        except Exception as error:
            if len(rows) == 1:
                return Outcome(failures=[self._failure(rows[0], error)])
            outcome = Outcome()
            for row in rows:  # find the rows that did it: the others go on
                outcome.add(self._run([row]))
            return outcome
        same = len(made) == len(rows)
        borrowed = self.input_mappings.keys() - rows[0].keys() - set(self.outputs)
        return Outcome(
            [
                self._named(
                    {name: value for name, value in row.items() if name not in borrowed},
                    rows[at].origin if same else None,
                )
                for at, row in enumerate(made)
            ]
        )

    def _view(self, row: Row) -> Row:
        """The row under the names this step knows.

        Raises:
            ValueError: If it lacks a column.
        """
        needed = {name: self.input_mappings.get(name, name) for name in [*self.inputs, *self.input_mappings]}
        if missing := [column for column in needed.values() if column not in row]:
            columns = ", ".join(f"`{column}`" for column in row) or "no columns"
            raise ValueError(f"no column `{missing[0]}`: the row has {columns}.")
        if not self.input_mappings:
            return row
        return Row(row | {name: row[column] for name, column in self.input_mappings.items()}, row.origin)

    def _named(self, row: Mapping[str, Any], origin: str | None) -> Row:
        """A row this step made, its columns called as `output_mappings` says."""
        return Row({self.output_mappings.get(name, name): value for name, value in row.items()}, origin)

    def _failure(self, row: Row, error: Exception, **facts: Any) -> Failure:
        message = getattr(error, "message", None) or f"{error}" or "no message"
        return Failure(self.name, type(error).__name__, message, row, **facts)


class GlobalStep(Step, ABC):
    """A step that needs all rows at once, such as one that removes duplicates."""


class GeneratorStep(Step, ABC):
    """A source: rows out, none in."""

    batch_size: int | None = Field(
        default=None, gt=0, description="Rows per batch, the work of one task run; sized by itself when empty."
    )

    @abstractmethod
    def process(self, offset: int = 0) -> Iterator[list[Row]]:  # type: ignore[override]
        """Yield rows in lists of any length, beginning with row number `offset`."""

    def rows(self, offset: int = 0) -> Iterator[Row]:
        """All the rows one by one, under their final names, each with its origin."""
        number = offset
        for chunk in self.process(offset):
            for row in chunk:
                yield self._named(row, Row.of(row).origin or f"{self.name}[{number}]")
                number += 1

    def check(self, columns: Sequence[str]) -> int | None:
        """Refuse data that lacks a column or cannot be read, before anything is paid for.

        Args:
            columns: What the steps after it need, under this step's own names.

        Returns:
            How many rows it will bring, if that is known.

        Raises:
            ValueError: Naming the place, the column and the cure.
        """
        outputs = self.outputs
        if outputs and (missing := [column for column in columns if column not in outputs]):
            found = ", ".join(f"`{column}`" for column in outputs)
            raise ValueError(f"`{self.name}` brings no column `{missing[0]}`: it has {found}.")
        return None


class Task(Step, ABC):
    """A step that asks a model. A subclass is a prompt and a parse: `format_input` and `format_output`.

    Every row comes back with its own columns, those of `outputs`, `model_name`, and `<name>_metadata` with the prompt
    really sent, the raw answer, why it ended and what it cost.
    """

    llm: AnyLLM = Field(description="The model that answers.")
    num_generations: int = Field(default=1, gt=0, description="Answers per row, each a row of its own.")
    group_generations: bool = Field(default=False, description="Keep a row's answers together, as lists in one row.")
    use_cache: bool = Field(default=True, description="Take answers that are in the store already.")
    add_raw_input: bool = Field(default=True, description="Keep the prompt really sent, in the metadata.")
    add_raw_output: bool = Field(default=True, description="Keep the answer as the model gave it, in the metadata.")

    @abstractmethod
    def format_input(self, row: Row) -> ChatType:
        """The chat to send for a row."""

    @abstractmethod
    def format_output(self, text: str | None, row: Row) -> Mapping[str, Any]:
        """The columns an answer comes to; `text` is `None` when the model gave none."""

    def load(self) -> None:
        """Load the task and its model."""
        super().load()
        self.llm.load()

    def unload(self) -> None:
        """Let go of the model's memory and connections."""
        self.llm.unload()

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Answer a batch of rows, all at the same time.

        Raises:
            RowsFailed: If some could not be answered; it holds those that were.
        """
        outcome = self.answer([Row.of(row) for row in inputs])
        if outcome.failures:
            raise RowsFailed(outcome.rows, outcome.failures)
        yield outcome.rows

    @final
    def answer(self, rows: list[Row]) -> Outcome:
        """Ask the model about every row, and sort answers from failures."""
        outcome, asked = Outcome(), list[tuple[Row, Row, ChatType]]()
        for row in rows:
            try:
                view = self._view(row)
                asked.append((row, view, self.format_input(view)))
            except Exception as error:
                outcome.failures.append(self._failure(row, error, attempts=0))
        if asked:
            llm = self.llm if self.use_cache else self.llm.model_copy(update={"use_cache": False})
            outputs = llm.generate_outputs([chat for _, _, chat in asked], self.num_generations)
            for (row, view, chat), output in zip(asked, outputs, strict=True):
                self._sort(outcome, row, view, chat, output)
        return outcome

    def _run(self, rows: list[Row]) -> Outcome:
        # A subclass may bring its own `process`; ours is a view of `answer` that cannot say what was spent.
        return self.answer(rows) if type(self).process is Task.process else super()._run(rows)

    def _sort(self, outcome: Outcome, row: Row, view: Row, chat: ChatType, output: GenerateOutput) -> None:
        spent = outcome.spending.setdefault(self.llm.model_name, Spending())
        outcome.spending[self.llm.model_name] = spent + Spending.of(output)
        if output.error:
            outcome.failures.append(self._failure(row, output.error, attempts=output.attempts))
            return
        made: list[Row] = []
        for at, text in enumerate(output):
            try:
                columns = dict(self.format_output(text, view))
            except Exception as error:
                outcome.failures.append(self._failure(row, error, attempts=output.attempts, raw_output=text))
                continue
            columns["model_name"] = self.llm.model_name
            columns[f"{self.name}_metadata"] = self._metadata(chat, output, at)
            made.append(self._named(columns, row.origin))
        if self.group_generations and made:
            made = [Row({name: [each[name] for each in made] for name in made[0]}, row.origin)]
        outcome.rows += [Row(row | columns, row.origin) for columns in made]

    def _metadata(self, chat: ChatType, output: GenerateOutput, at: int) -> dict[str, Any]:
        """What is known of one generation; the tokens of the request stand with its first."""
        usage = output.usage
        return {
            **({"raw_input": [_flat(message) for message in chat]} if self.add_raw_input else {}),
            **({"raw_output": output[at]} if self.add_raw_output else {}),
            "finish_reason": output.finish_reasons[at],
            "reasoning": output.reasoning[at],
            "input_tokens": usage.input_tokens if at == 0 else None,
            "output_tokens": usage.output_tokens if at == 0 else None,
            "seconds": round(output.seconds, 4),
            "attempts": output.attempts,
        }


def _flat(message: Mapping[str, Any]) -> dict[str, str]:
    """A message with its content as one text, so that a column of them has one type."""
    content = message["content"]
    return {"role": message["role"], "content": content if isinstance(content, str) else json.dumps(content)}
