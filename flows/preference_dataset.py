"""Make pairs of a chosen and a rejected answer, as a judge rates them: `python -m flows.preference_dataset`."""

from typing import Annotated, Any, Literal, Unpack

from flows import Distiset, Pipeline
from flows.cli import main
from flows.pipeline import flow
from flows.settings import RunSettingsArgs, StepParameters
from flows.text_generation import INSTRUCTIONS
from llms import AnyLLM, LlamaServerLLM, StructuredLLM
from tasks import (
    Filter,
    FormatTextGenerationDPO,
    GroupColumns,
    KeepColumns,
    Source,
    TextGeneration,
    UltraFeedback,
    load_data,
)

COLUMNS = [
    "instruction",
    "prompt",
    "prompt_id",
    "chosen",
    "chosen_model",
    "chosen_rating",
    "rejected",
    "rejected_model",
    "rejected_rating",
]
"""Columns that trainers of preference optimization read."""


def _has_different_answers(row: dict[str, Any]) -> bool:
    return len({str(text).strip() for text in row["generations"]}) > 1


@flow
def preference_dataset(
    data: Source | None = None,
    llm: AnyLLM = LlamaServerLLM(generation_kwargs={"temperature": 0.2, "seed": 1}),
    other_llm: AnyLLM = LlamaServerLLM(generation_kwargs={"temperature": 3.0, "seed": 2}),
    more_llms: tuple[AnyLLM, ...] = (),
    judge: AnyLLM = LlamaServerLLM(n_ctx=4096, generation_kwargs={"max_new_tokens": 1500, "seed": 3}),
    aspect: Literal[
        "overall-rating", "helpfulness", "honesty", "instruction-following", "truthfulness"
    ] = "overall-rating",
    parameters: Annotated[
        dict[str, dict[str, Any]] | None,
        StepParameters(first=TextGeneration, second=TextGeneration, judge=UltraFeedback),
    ] = None,
    **settings: Unpack[RunSettingsArgs],
) -> Distiset:
    """Have two models or more answer every instruction and another judge them: pairs for preference optimization.

    A pair is the best rated answer and the worst. Instructions whose answers are the same, or rated the same, teach
    nothing and are left out.

    Args:
        data: Rows with an `instruction`: a file, a folder, a Hub id, or the rows. Without any, packaged examples.
        llm: One model: a saved block (`openai-llm/prod`), or a class and its fields (`OpenAILLM model=gpt-5`).
        other_llm: The other model.
        more_llms: Further models, if there are to be more than two answers to choose from.
        judge: The model that rates the answers; one that can be held to a schema is.
        aspect: What is rated.
        parameters: Runtime parameters by step, such as `judge.llm.generation_kwargs.temperature`.
    """
    with Pipeline(name="preference-dataset") as pipeline:
        instructions = load_data(data or INSTRUCTIONS)
        answers = [TextGeneration(name="first", llm=llm), TextGeneration(name="second", llm=other_llm)]
        answers += [TextGeneration(name=f"model_{number}", llm=more) for number, more in enumerate(more_llms, 3)]
        pairs = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "generation_models"])
        rated = UltraFeedback(
            name="judge",
            llm=judge,
            aspect=aspect,
            use_default_structured_output=isinstance(judge, StructuredLLM),
        )
        preferred = FormatTextGenerationDPO()
        instructions >> answers >> pairs >> Filter(name="differ", where=_has_different_answers) >> rated >> preferred
        preferred >> KeepColumns(columns=COLUMNS)
    return pipeline.run(parameters, **settings)


if __name__ == "__main__":
    main(preference_dataset)
