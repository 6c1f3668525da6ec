"""A step that asks a model: a prompt and a parse."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, final

from pydantic import Field

from llms import AnyLLM
from llms.typing import ChatType, FormattedInput, GenerateOutput
from tasks.base import Step
from tasks.typing import BatchResult, ModelUsage, PartialBatchError, Row


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
    def format_input(self, row: Row) -> FormattedInput:
        """The chat to send for a row, or a pair of the chat and the `structured_output` its answer is held to."""

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
            PartialBatchError: If some could not be answered; it holds those that were.
        """
        outcome = self.answer([Row.of(row) for row in inputs])
        if outcome.failures:
            raise PartialBatchError(outcome.rows, outcome.failures)
        yield outcome.rows

    @final
    def answer(self, rows: list[Row]) -> BatchResult:
        """Ask the model about every row, and sort answers from failures."""
        outcome, asked = BatchResult(), list[tuple[Row, Row, FormattedInput]]()
        for row in rows:
            try:
                view = self._apply_input_mappings(row)
                asked.append((row, view, self.format_input(view)))
            except Exception as error:
                outcome.failures.append(self._failure(row, error, attempts=0))
        if asked:
            llm = self.llm if self.use_cache else self.llm.model_copy(update={"use_cache": False})
            outputs = llm.generate_outputs([given for _, _, given in asked], self.num_generations)
            for (row, view, given), output in zip(asked, outputs, strict=True):
                self._sort(outcome, row, view, given[0] if isinstance(given, tuple) else given, output)
        return outcome

    def _run(self, rows: list[Row]) -> BatchResult:
        # A subclass may bring its own `process`; ours is a view of `answer` that cannot say what was spent.
        return self.answer(rows) if type(self).process is Task.process else super()._run(rows)

    def _sort(self, outcome: BatchResult, row: Row, view: Row, chat: ChatType, output: GenerateOutput) -> None:
        spent = outcome.model_usage.setdefault(self.llm.model_name, ModelUsage())
        outcome.model_usage[self.llm.model_name] = spent + ModelUsage.of(output)
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
            made.append(self._apply_output_mappings(columns, row.origin))
        if self.group_generations and made:
            made = [Row({name: [each[name] for each in made] for name in made[0]}, row.origin)]
        outcome.rows += [Row(row | columns, row.origin) for columns in made]

    def _metadata(self, chat: ChatType, output: GenerateOutput, at: int) -> dict[str, Any]:
        """What is known of one generation; tokens and dollars of the request stand with its first."""
        tokens = asdict(output.usage)
        likely = output.logprobs[at]
        return {
            **({"raw_input": [_flat(message) for message in chat]} if self.add_raw_input else {}),
            **({"raw_output": output[at]} if self.add_raw_output else {}),
            "finish_reason": output.finish_reasons[at],
            "reasoning": output.reasoning[at],
            **({"logprobs": likely} if likely else {}),
            **(tokens if at == 0 else dict.fromkeys(tokens)),
            "cost": output.cost if at == 0 else None,
            "seconds": round(output.seconds, 4),
            "attempts": output.attempts,
        }


def _flat(message: Mapping[str, Any]) -> dict[str, str]:
    """A message with its content as one text, so that a column of them has one type."""
    content = message["content"]
    return {"role": message["role"], "content": content if isinstance(content, str) else json.dumps(content)}
