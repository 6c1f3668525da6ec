"""Answer a list of instructions: `python -m flows.text_generation --data instructions.jsonl`."""

from pathlib import Path
from typing import Annotated, Any, Unpack

from flows import Distiset, Pipeline
from flows.cli import main
from flows.pipeline import flow
from flows.settings import RunSettingsArgs, StepParameters
from llms import AnyLLM, LlamaServerLLM
from tasks import Source, TextGeneration, load_data

INSTRUCTIONS = Path(__file__).parent / "data" / "instructions.jsonl"
"""Some hundreds of instructions that the demo model can answer."""


@flow
def text_generation(
    data: Source | None = None,
    llm: AnyLLM = LlamaServerLLM(),
    num_generations: int = 1,
    system_prompt: str | None = None,
    template: str = "{{ instruction }}",
    parameters: Annotated[dict[str, dict[str, Any]] | None, StepParameters(text_generation=TextGeneration)] = None,
    **settings: Unpack[RunSettingsArgs],
) -> Distiset:
    """Answer every instruction.

    Args:
        data: Rows with an `instruction`: a file, a folder, a Hub id, or the rows. Without any, packaged examples.
        llm: The model: a saved block (`openai-llm/prod`), or a class and its fields (`OpenAILLM model=gpt-5`).
        num_generations: Answers per instruction, each a row of its own.
        system_prompt: Said to the model before every instruction; a row's own `system_prompt` wins.
        template: The prompt, Jinja2 over the row's columns.
        parameters: Runtime parameters by step, such as `text_generation.llm.generation_kwargs.temperature`.
    """
    with Pipeline(name="text-generation") as pipeline:
        instructions = load_data(data or INSTRUCTIONS)
        answers = TextGeneration(
            llm=llm, num_generations=num_generations, system_prompt=system_prompt, template=template
        )
        instructions >> answers
    return pipeline.run(parameters, **settings)


if __name__ == "__main__":
    main(text_generation)
