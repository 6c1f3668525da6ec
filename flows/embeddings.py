"""Texts as vectors: `python -m flows.embeddings --data texts.jsonl --pooling mean`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from flows.cli.main import main
from flows.dataset.distiset import Distiset
from flows.pipeline.flow import flow
from flows.pipeline.pipeline import Pipeline
from flows.settings.run_settings import OutputFormat
from flows.settings.step_parameters import StepParameters
from llms import AnyLLM, LlamaServerLLM
from tasks import GenerateEmbeddings, Source, load_data

TEXTS = [
    {"text": f"{animal} {verb}."}
    for animal in ("The cat", "A dog", "The old horse", "My sister's parrot")
    for verb in ("sleeps in the sun", "is hungry", "runs away", "knows three words")
]
"""What is embedded when no data is given."""


@flow
def embeddings(
    data: Source | None = None,
    llm: AnyLLM = LlamaServerLLM(),  # noqa: B008  # a block is plain data
    pooling: Literal["last", "mean", "cls"] = "last",
    column: str = "text",
    output: Path = Path("outputs/embeddings"),  # noqa: B008
    limit: int | None = None,
    max_error_rate: float = 0.1,
    output_format: OutputFormat = "parquet",
    dry_run: int | None = None,
    parameters: Annotated[
        dict[str, dict[str, Any]] | None, StepParameters(generate_embeddings=GenerateEmbeddings)
    ] = None,
) -> Distiset:
    """Add an `embedding` to every row: the last hidden state of a model that runs here, pooled.

    Args:
        data: Rows with a `text`: a file, a folder, a Hub id, or the rows. Without any, packaged examples.
        llm: A model that runs in the worker's process, such as `TransformersLLM model=Qwen/Qwen3-0.6B`.
        pooling: What becomes of the tokens' vectors: the last one, their mean, or the first one.
        column: The column with the text, or with a chat.
        output: Folder for the dataset.
        limit: Rows to take from the data, at most.
        max_error_rate: The run fails when a larger share of the rows that enter a step fails in it.
        output_format: What the files of the dataset are: Parquet, or JSONL.
        dry_run: Take so many rows only, show what is sent and what comes, and estimate what all rows would take.
        parameters: Runtime parameters by step, such as `generate_embeddings.input_batch_size`.
    """
    with Pipeline(name="embeddings") as pipeline:
        mappings = {} if column == "text" else {"text": column}
        load_data(data or TEXTS) >> GenerateEmbeddings(llm=llm, pooling=pooling, input_mappings=mappings)
    return pipeline.run(
        parameters,
        output=output,
        max_error_rate=max_error_rate,
        limit=limit,
        output_format=output_format,
        dry_run=dry_run,
    )


if __name__ == "__main__":
    main(embeddings)
