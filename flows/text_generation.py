"""Answer a list of instructions: `python -m flows.text_generation --data instructions.jsonl`."""

from pathlib import Path
from typing import Annotated, Any

from flows.cli.main import main
from flows.dataset.distiset import Distiset
from flows.pipeline.flow import flow
from flows.pipeline.pipeline import Pipeline
from flows.settings.run_settings import OutputFormat
from flows.settings.step_parameters import StepParameters
from llms import AnyLLM, LlamaServerLLM
from tasks import Source, TextGeneration, load_data

INSTRUCTIONS = Path(__file__).parent / "data" / "instructions.jsonl"
"""Some hundreds of instructions the demo model has an answer to."""


@flow
def text_generation(
    data: Source | None = None,
    llm: AnyLLM = LlamaServerLLM(),  # noqa: B008  # a block is plain data
    num_generations: int = 1,
    system_prompt: str | None = None,
    template: str = "{{ instruction }}",
    output: Path = Path("outputs/text_generation"),  # noqa: B008
    limit: int | None = None,
    use_cache: bool = True,
    max_error_rate: float = 0.1,
    max_cost: float | None = None,
    max_tokens_total: int | None = None,
    approve: bool = False,
    output_format: OutputFormat = "parquet",
    dry_run: int | None = None,
    parameters: Annotated[dict[str, dict[str, Any]] | None, StepParameters(text_generation=TextGeneration)] = None,
) -> Distiset:
    """Answer every instruction.

    Args:
        data: Rows with an `instruction`: a file, a folder, a Hub id, or the rows. Without any, packaged examples.
        llm: The model: a saved block (`openai-llm/prod`), or a class and its fields (`OpenAILLM model=gpt-5`).
        num_generations: Answers per instruction, each a row of its own.
        system_prompt: Said to the model before every instruction; a row's own `system_prompt` wins.
        template: The prompt, Jinja2 over the row's columns.
        output: Folder for the dataset.
        limit: Rows to take from the data, at most.
        use_cache: Take answers that are in the store already; without it every row is asked anew.
        max_error_rate: The run fails when a larger share of the rows that enter a step fails in it.
        max_cost: Dollars this run may spend; the same command with more goes on from there.
        max_tokens_total: Tokens this run may spend, input and output together.
        approve: Wait, with an estimate from the first rows, until somebody gives the run a budget or says no.
        output_format: What the files of the dataset are: Parquet, or JSONL.
        dry_run: Take so many rows only, show what is sent and what comes, and estimate what all rows would take.
        parameters: Runtime parameters by step, such as `text_generation.llm.generation_kwargs.temperature`.
    """
    with Pipeline(name="text-generation") as pipeline:
        instructions = load_data(data or INSTRUCTIONS)
        answers = TextGeneration(
            llm=llm, num_generations=num_generations, system_prompt=system_prompt, template=template
        )
        instructions >> answers
    return pipeline.run(
        parameters,
        output=output,
        max_error_rate=max_error_rate,
        limit=limit,
        use_cache=use_cache,
        max_cost=max_cost,
        max_tokens_total=max_tokens_total,
        approve=approve,
        output_format=output_format,
        dry_run=dry_run,
    )


if __name__ == "__main__":
    main(text_generation)
