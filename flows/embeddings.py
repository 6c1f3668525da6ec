"""Embed texts: `python -m flows.embeddings --data texts.jsonl --pooling mean`."""

from typing import Annotated, Any, Literal, Unpack

from flows import Distiset, Pipeline
from flows.cli import main
from flows.pipeline import flow
from flows.settings import RunSettingsArgs, StepParameters
from llms import AnyLLM, LlamaServerLLM
from tasks import GenerateEmbeddings, Source, load_data

TEXTS = [
    {"text": f"{animal} {verb}."}
    for animal in ("The cat", "A dog", "The old horse", "My sister's parrot")
    for verb in ("sleeps in the sun", "is hungry", "runs away", "knows three words")
]
"""Default data."""


@flow
def embeddings(
    data: Source | None = None,
    llm: AnyLLM = LlamaServerLLM(),
    pooling: Literal["last", "mean", "cls"] = "last",
    column: str = "text",
    parameters: Annotated[
        dict[str, dict[str, Any]] | None, StepParameters(generate_embeddings=GenerateEmbeddings)
    ] = None,
    **settings: Unpack[RunSettingsArgs],
) -> Distiset:
    """Add an `embedding` to every row: the last hidden state of a model that runs here, pooled.

    Args:
        data: Rows with a `text`: a file, a folder, a Hub id, or the rows. Without any, packaged examples.
        llm: A model that runs in the worker's process, such as `TransformersLLM model=Qwen/Qwen3-0.6B`.
        pooling: What becomes of the tokens' vectors: the last one, their mean, or the first one.
        column: The column with the text, or with a chat.
        parameters: Runtime parameters by step, such as `generate_embeddings.input_batch_size`.
    """
    with Pipeline(name="embeddings") as pipeline:
        mappings = {} if column == "text" else {"text": column}
        load_data(data or TEXTS) >> GenerateEmbeddings(llm=llm, pooling=pooling, input_mappings=mappings)
    return pipeline.run(parameters, **settings)


if __name__ == "__main__":
    main(embeddings)
