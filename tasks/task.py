"""Base class of steps that call a model: a prompt and a parser."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, final

from pydantic import Field

from llms import AnyLLM
from llms.typing import ChatType, FormattedInput, GenerateOutput, split_input
from tasks.base import Step
from tasks.typing import BatchResult, PartialBatchError, Row


class Task(Step, ABC):
    """A step that calls a model.

    Subclasses define a prompt, `format_input`, and a parser, `format_output`, beside `inputs` and `outputs`. Every row
    keeps its columns and gets those of `outputs`, `model_name`, and `<name>_metadata` with the prompt as sent, the raw
    output, finish reason, tokens and cost.
    """

    llm: AnyLLM = Field(description="The model that answers.")
    num_generations: int = Field(default=1, gt=0, description="Answers per row, each a row of its own.")
    group_generations: bool = Field(default=False, description="Keep a row's answers together, as lists in one row.")
    use_cache: bool = Field(default=True, description="Take answers that are in the store already.")
    add_raw_input: bool = Field(default=True, description="Keep the prompt really sent, in the metadata.")
    add_raw_output: bool = Field(default=True, description="Keep the answer as the model gave it, in the metadata.")

    @abstractmethod
    def format_input(self, row: Row) -> FormattedInput:
        """Return the chat for a row, or a pair of the chat and a `structured_output`. Override this in subclasses."""

    @abstractmethod
    def format_output(self, text: str | None, row: Row) -> Mapping[str, Any]:
        """Parse a generation into columns; `text` is `None` if the model returned none. Override this in subclasses."""

    def load(self) -> None:
        """Load the task and its model. Override this in subclasses that need resources, and call `super().load()`."""
        super().load()
        self.llm.load()

    def unload(self) -> None:
        """Release the model's memory and connections. Override this in subclasses that override `load`."""
        self.llm.unload()

    def process(self, inputs: list[Row]) -> Iterator[list[Row]]:
        """Generate for a batch of rows concurrently. Usually not overridden.

        Raises:
            PartialBatchError: If some rows failed; it holds the others.
        """
        result = self.answer([Row.of(row) for row in inputs])
        if result.failures:
            raise PartialBatchError(result.rows, result.failures)
        yield result.rows

    @final
    def answer(self, rows: list[Row]) -> BatchResult:
        """Call the model for every row, and separate rows from failures."""
        result, requests = BatchResult(), list[tuple[Row, Row, FormattedInput]]()
        for row in rows:
            try:
                mapped = self.apply_input_mappings(row)
                requests.append((row, mapped, self.format_input(mapped)))
            except Exception as error:
                result.failures.append(self._failure(row, error, attempts=0))
        if requests:
            llm = self.llm if self.use_cache else self.llm.model_copy(update={"use_cache": False})
            outputs = llm.generate_outputs([formatted for _, _, formatted in requests], self.num_generations)
            for (row, mapped, formatted), output in zip(requests, outputs, strict=True):
                chat, _ = split_input(formatted)
                self._add_output(result, row, mapped, chat, output)
        return result

    def _run(self, rows: list[Row]) -> BatchResult:
        # A subclass may define its own `process`, whose rows have yet to be mapped; `answer` maps them.
        return self.answer(rows) if type(self).process is Task.process else super()._run(rows)

    def _add_output(self, result: BatchResult, row: Row, mapped: Row, chat: ChatType, output: GenerateOutput) -> None:
        """Add the rows and failures of one request."""
        if output.error:
            result.failures.append(self._failure(row, output.error, attempts=output.attempts))
            return
        generations: list[Row] = []
        for index, text in enumerate(output):
            try:
                columns = dict(self.format_output(text, mapped))
            except Exception as error:
                result.failures.append(self._failure(row, error, attempts=output.attempts, raw_output=text))
                continue
            columns["model_name"] = self.llm.model_name
            columns[f"{self.name}_metadata"] = self._metadata(chat, output, index)
            generations.append(self._apply_output_mappings(columns, row.origin))
        if self.group_generations and generations:
            grouped = {name: [each[name] for each in generations] for name in generations[0]}
            generations = [Row(grouped, row.origin)]
        result.rows += [Row(row | columns, row.origin) for columns in generations]

    def _metadata(self, chat: ChatType, output: GenerateOutput, index: int) -> dict[str, Any]:
        """Return the metadata of one generation; the first one carries the tokens and cost of the request."""
        tokens = asdict(output.usage)
        logprobs = output.logprobs[index]
        return {
            **({"raw_input": [_flatten(message) for message in chat]} if self.add_raw_input else {}),
            **({"raw_output": output[index]} if self.add_raw_output else {}),
            "finish_reason": output.finish_reasons[index],
            "reasoning": output.reasoning[index],
            **({"logprobs": logprobs} if logprobs else {}),
            **(tokens if index == 0 else dict.fromkeys(tokens)),
            "cost": output.cost if index == 0 else None,
            "seconds": round(output.seconds, 4),
            "attempts": output.attempts,
        }


def _flatten(message: Mapping[str, Any]) -> dict[str, str]:
    """Return a message with its content as text, so that a column of messages has one type."""
    content = message["content"]
    return {"role": message["role"], "content": content if isinstance(content, str) else json.dumps(content)}
