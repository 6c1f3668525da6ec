"""Generate JSON of a schema: `python -m flows.structured_generation --structured-output user.json`."""

from pathlib import Path
from typing import Annotated, Any, Unpack

from flows import Distiset, Pipeline
from flows.cli import main
from flows.pipeline import flow
from flows.settings import RunSettingsArgs, StepParameters
from llms import AnyLLM, LlamaServerLLM
from tasks import Source, StructuredGeneration, load_data

CHARACTERS = [
    {"instruction": f"Create a role-playing character: a {kind} from {place}."}
    for kind in ("knight", "wizard", "thief", "healer")
    for place in ("the mountains", "a harbour town", "the northern woods")
]
"""Default data."""

CHARACTER = {
    "title": "Character",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 30},
        "age": {"type": "integer", "minimum": 16, "maximum": 120},
        "profession": {"enum": ["knight", "wizard", "thief", "healer"]},
        "strength": {"type": "integer", "minimum": 1, "maximum": 20},
        "weapons": {"type": "array", "items": {"enum": ["sword", "bow", "staff", "dagger"]}, "maxItems": 3},
    },
    "required": ["name", "age", "profession", "strength", "weapons"],
}
"""Default schema of the answers."""


@flow
def structured_generation(
    data: Source | None = None,
    structured_output: dict[str, Any] | str | None = None,
    llm: AnyLLM = LlamaServerLLM(),
    num_generations: int = 1,
    system_prompt: str | None = None,
    template: str = "{{ instruction }}",
    parameters: Annotated[
        dict[str, dict[str, Any]] | None, StepParameters(structured_generation=StructuredGeneration)
    ] = None,
    **settings: Unpack[RunSettingsArgs],
) -> Distiset:
    """Answer every instruction with JSON of a schema, or with a text that matches a pattern.

    Args:
        data: Rows with an `instruction`, and a `structured_output` of their own if they like. Without any, characters.
        structured_output: A JSON schema, a file with one, or a regular expression. Without any, a character's.
        llm: The model: a saved block (`openai-llm/prod`), or a class and its fields (`OpenAILLM model=gpt-5`).
        num_generations: Answers per instruction, each a row of its own.
        system_prompt: Said to the model before every instruction; a row's own `system_prompt` wins.
        template: The prompt, Jinja2 over the row's columns.
        parameters: Runtime parameters by step, such as `structured_generation.llm.generation_kwargs.temperature`.
    """
    schema = structured_output
    if isinstance(schema, str) and schema.endswith(".json"):
        schema = Path(schema).read_text()
    with Pipeline(name="structured-generation") as pipeline:
        instructions = load_data(data or CHARACTERS)
        answers = StructuredGeneration(
            llm=llm.with_structured_output({"schema": schema or CHARACTER}),
            num_generations=num_generations,
            system_prompt=system_prompt,
            template=template,
        )
        instructions >> answers
    return pipeline.run(parameters, **settings)


if __name__ == "__main__":
    main(structured_generation)
