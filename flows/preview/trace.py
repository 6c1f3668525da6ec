"""What the steps of a preview asked for each row, and what came."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, Field

from flows.dag.graph import Graph
from llms.typing import Usage, split_input
from tasks import GeneratorStep, Step, Task
from tasks.typing import BatchResult, Failure, Row

Key = tuple[int, ...] | None
"""The place of a row's source among the sources, and its number there; `None` when it is not known which row it is."""


class RequestTrace(BaseModel):
    """A request.

    Attributes:
        step: The step that asked.
        model: The model that was asked.
        prompt: What was really sent.
        answers: What came, as the model gave it.
        error: Why the answer, or one of them, is of no use.
        input_tokens: What it took, now or when it was first asked; `None` when that is not known, as of a failure.
        output_tokens: The same.
        cost: Dollars, the same.
        seconds: How long it took; `None` when that is not known.
    """

    step: str
    model: str
    prompt: list[dict[str, str]]
    answers: list[str | None] = Field(default_factory=list)
    error: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def markdown(self) -> str:
        """The prompt and the answers, in full."""
        sent = [f"{message['role']}:\n\n{_blockquote(message['content'])}" for message in self.prompt]
        came = [f"answer:\n\n{_blockquote(answer or '(none)')}" for answer in self.answers]
        failed = [f"**failed**: {self.error}"] if self.error else []
        return "\n\n".join([f"**{self.step}** to `{self.model}`", *sent, *came, *failed])


class RowTrace(BaseModel):
    """A row of a source, and what became of it.

    Attributes:
        origin: Where it was loaded from.
        asked: What was asked for it, in order.
        failures: Why it left the stream, or something that was made of it, with nothing asked.
    """

    origin: str
    asked: list[RequestTrace] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)

    def markdown(self) -> str:
        """Every prompt, every answer and every failure."""
        failed = [f"**failed**: {failure}" for failure in self.failures]
        return "\n\n".join([f"## {self.origin}", *(each.markdown() for each in self.asked), *failed])


class TraceRecorder:
    """Writes down what is asked in a run of few rows.

    Args:
        graph: The steps; those that ask are made to keep what they send and what comes.
    """

    def __init__(self, graph: Graph) -> None:
        self.rows: dict[Key, RowTrace] = {}
        for step in graph.steps:
            if isinstance(step, Task):
                step.add_raw_input = step.add_raw_output = True

    def record(self, step: Step, outcome: BatchResult) -> None:
        """Take in what a step made of a batch."""
        if isinstance(step, GeneratorStep):
            self.rows |= {_row_key(row): RowTrace(origin=f"{row.origin}") for row in outcome.rows}
        elif isinstance(step, Task):
            answered = list(self._record_requests(step, outcome.rows))
            for failure in outcome.failures:
                self._record_failure(step, failure, answered)
        else:
            for failure in outcome.failures:
                self._row(failure.row).failures.append(f"`{step.name}`: {failure.message}")

    def _row(self, row: Row) -> RowTrace:
        return self.rows.setdefault(_row_key(row), RowTrace(origin="rows of which it is not known where they are from"))

    def _record_requests(self, step: Task, rows: Iterable[Row]) -> Iterator[tuple[Row, RequestTrace]]:
        """The requests behind the rows a step made, of which there is one per generation, or one for all of them."""
        asked: RequestTrace | None = None
        for row in rows:
            for told in _metadata(step, row):
                if asked is None or told["input_tokens"] is not None or told["raw_input"] != asked.prompt:
                    asked = _to_request(step, told)
                    self._row(row).asked.append(asked)
                    yield row, asked
                asked.answers.append(told["raw_output"])

    def _record_failure(self, step: Task, failure: Failure, answered: list[tuple[Row, RequestTrace]]) -> None:
        """A request failed, or a generation that others came with; or nothing was asked."""
        row = failure.row
        if not failure.attempts:
            self._row(row).failures.append(f"`{step.name}`: {failure.message}")
            return
        asked = next((asked for made, asked in answered if row.id and row.id == (made.id or ())[: len(row.id)]), None)
        if asked is None:
            asked = RequestTrace(step=step.name, model=step.llm.model_name, prompt=_rendered_prompt(step, row))
            self._row(row).asked.append(asked)
            answered.append((row, asked))
        asked.error = failure.message
        if failure.raw_output is not None:
            asked.answers.append(failure.raw_output)


def sent_prompt(step: Task, row: Row) -> list[dict[str, str]] | None:
    """What a step sent for a row it made, if that was kept."""
    return next((told["raw_input"] for told in _metadata(step, row) if "raw_input" in told), None)


def _metadata(step: Task, row: Row) -> list[Mapping[str, Any]]:
    """What a step says of each generation in a row it made; nothing, if it brings a `process` of its own."""
    if type(step).process is not Task.process:
        return []
    column = f"{step.name}_metadata"
    known = row[step.output_mappings.get(column, column)]
    return known if isinstance(known, list) else [known]


def _to_request(step: Task, told: Mapping[str, Any]) -> RequestTrace:
    """A request, out of the metadata of its first generation that is there."""
    asked = RequestTrace(step=step.name, model=step.llm.model_name, prompt=told["raw_input"], seconds=told["seconds"])
    if told["input_tokens"] is not None:
        usage = Usage(**{name: told[name] for name in Usage.__slots__})
        asked.input_tokens, asked.output_tokens = usage.input_tokens, usage.output_tokens
        asked.cost = told["cost"] if (price := step.llm.cost(usage)) is None else price  # a stored answer has none
    return asked


def _rendered_prompt(step: Task, row: Row) -> list[dict[str, str]]:
    """What a request was that failed, of which no metadata tells."""
    given = step.format_input(step.apply_input_mappings(row))
    chat, _ = split_input(given)
    texts = [content if isinstance(content := message["content"], str) else json.dumps(content) for message in chat]
    return [{"role": message["role"], "content": text} for message, text in zip(chat, texts, strict=True)]


def _row_key(row: Row) -> Key:
    return row.id[:2] if row.id else None


def _blockquote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
