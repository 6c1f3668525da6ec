"""Answer a list of instructions: `python -m flows.text_generation --data instructions.jsonl`."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.cli import main
from flows.distiset import Distiset
from flows.pipeline import Pipeline
from llms import AnyLLM, LlamaServerLLM
from tasks import Source, TextGeneration, load

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
    parameters: dict[str, dict[str, Any]] | None = None,
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
        parameters: Runtime parameters by step, such as `text_generation.llm.generation_kwargs.temperature`.
    """
    with Pipeline(name="text-generation") as pipeline:
        instructions = load(data or INSTRUCTIONS)
        answers = TextGeneration(
            llm=llm, num_generations=num_generations, system_prompt=system_prompt, template=template
        )
        instructions >> answers
    return pipeline.run(parameters, output=output, limit=limit, use_cache=use_cache)


if __name__ == "__main__":
    main(text_generation)
