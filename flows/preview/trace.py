"""Requests and answers of a dry run, by row of the sources."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, Field

from flows.dag.graph import Graph
from llms.typing import Usage, split_input
from tasks import GeneratorStep, Step, Task
from tasks.typing import BatchResult, Failure, Row

Key = tuple[int, ...] | None
"""Index of a row's source and of the row in it; `None` if it is unknown which row it is."""


class RequestTrace(BaseModel):
    """A request and its answers.

    Attributes:
        step: The step that made it.
        model: The model it was sent to.
        prompt: The messages as sent.
        answers: The raw answers.
        error: Why an answer was rejected, if one was.
        input_tokens: Input tokens, of the first request if the answer is stored; `None` if unknown, as of a failure.
        output_tokens: Output tokens, likewise.
        cost: Dollars, likewise.
        seconds: Latency; `None` if unknown.
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
        """Return the prompt and the answers in full."""
        sent = [f"{message['role']}:\n\n{_blockquote(message['content'])}" for message in self.prompt]
        came = [f"answer:\n\n{_blockquote(answer or '(none)')}" for answer in self.answers]
        failed = [f"**failed**: {self.error}"] if self.error else []
        return "\n\n".join([f"**{self.step}** to `{self.model}`", *sent, *came, *failed])


class RowTrace(BaseModel):
    """A row of a source with its requests and failures.

    Attributes:
        origin: Where it was loaded from.
        asked: Its requests, in order.
        failures: Failures of it, or of rows made from it, without a request.
    """

    origin: str
    asked: list[RequestTrace] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)

    def markdown(self) -> str:
        """Return every prompt, answer and failure."""
        failed = [f"**failed**: {failure}" for failure in self.failures]
        return "\n\n".join([f"## {self.origin}", *(each.markdown() for each in self.asked), *failed])


class TraceRecorder:
    """Records the requests of a run of few rows.

    Args:
        graph: The steps; its tasks are set to keep raw inputs and outputs.
    """

    def __init__(self, graph: Graph) -> None:
        self.rows: dict[Key, RowTrace] = {}
        for step in graph.steps:
            if isinstance(step, Task):
                step.add_raw_input = step.add_raw_output = True

    def record(self, step: Step, outcome: BatchResult) -> None:
        """Record the result of a batch."""
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
        """Yield the requests behind the rows a step made: one per row, or one for several generations."""
        asked: RequestTrace | None = None
        for row in rows:
            for told in _metadata(step, row):
                if asked is None or told["input_tokens"] is not None or told["raw_input"] != asked.prompt:
                    asked = _to_request(step, told)
                    self._row(row).asked.append(asked)
                    yield row, asked
                asked.answers.append(told["raw_output"])

    def _record_failure(self, step: Task, failure: Failure, answered: list[tuple[Row, RequestTrace]]) -> None:
        """Record a failed request, a failed generation among others, or a failure without a request."""
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
    """Return the messages a step sent for a row, if they were kept."""
    return next((told["raw_input"] for told in _metadata(step, row) if "raw_input" in told), None)


def _metadata(step: Task, row: Row) -> list[Mapping[str, Any]]:
    """Return the metadata of each generation in a row; none if the step overrides `process`."""
    if type(step).process is not Task.process:
        return []
    column = f"{step.name}_metadata"
    known = row[step.output_mappings.get(column, column)]
    return known if isinstance(known, list) else [known]


def _to_request(step: Task, told: Mapping[str, Any]) -> RequestTrace:
    """Return the request behind a generation's metadata."""
    asked = RequestTrace(step=step.name, model=step.llm.model_name, prompt=told["raw_input"], seconds=told["seconds"])
    if told["input_tokens"] is not None:
        usage = Usage(**{name: told[name] for name in Usage.__slots__})
        asked.input_tokens, asked.output_tokens = usage.input_tokens, usage.output_tokens
        asked.cost = told["cost"] if (price := step.llm.cost(usage)) is None else price  # a stored answer has none
    return asked


def _rendered_prompt(step: Task, row: Row) -> list[dict[str, str]]:
    """Return the messages of a failed request, which has no metadata."""
    given = step.format_input(step.apply_input_mappings(row))
    chat, _ = split_input(given)
    texts = [content if isinstance(content := message["content"], str) else json.dumps(content) for message in chat]
    return [{"role": message["role"], "content": text} for message, text in zip(chat, texts, strict=True)]


def _row_key(row: Row) -> Key:
    return row.id[:2] if row.id else None


def _blockquote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
