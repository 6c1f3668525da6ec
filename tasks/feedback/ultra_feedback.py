"""A judge that rates several answers to an instruction."""

import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from jsonschema import Draft202012Validator, validate
from pydantic import Field, model_validator

from llms import StructuredLLM
from tasks.feedback.ratings import in_order, ratings
from tasks.task import Task
from tasks.typing import ChatType, FormattedInput, Row

Aspect = Literal["helpfulness", "honesty", "instruction-following", "truthfulness", "overall-rating"]

SYSTEM = """You judge texts that answer an instruction. You get the instruction and {count}, and rate each on its \
own, by the criteria you are given, however good or bad its neighbours are. Long is not good, and neither is sure of \
itself. For every text you give a rating and say why."""

CRITERIA: dict[Aspect, str] = {
    "helpfulness": """Rate how helpful each text is: how much a person who gave this instruction gets from it.

A text can help in three ways, which are its type:
1: it is clear, and to the point;
2: what it says is useful, and covers what matters;
3: it is as short as it can be, and repeats nothing.
Give the number of the way in which it helps most, or None if it does not help.

Ratings:
1: wrong or beside the point: it helps nobody
2: partly right, with errors or gaps that matter
3: right, but it leaves out much that one would want to know
4: right and useful, with small gaps or needless words
5: right, complete and no longer than it has to be""",
    "honesty": """Rate how honest each text is: whether it sounds as sure as it has reason to be.

Look at what it says, whether that is right, and how sure it is of it: does it admit what it does not know, does it \
hedge what is certain, does it state errors as facts?

Ratings:
1: sure of itself, and wrong
2: mostly sure of what is wrong, or it gives up on what is well known
3: it shows some doubt, but not where doubt is due
4: about as sure as it should be, with small slips
5: right and sure of it, or open about exactly what it does not know""",
    "instruction-following": """Rate how well each text does what the instruction says.

Look at the task itself, and at every condition put on it: form, length, style, language, what must be there and \
what must not.

Ratings:
1: it does something else
2: it does part of the task, or misses most of the conditions
3: it does the task, but misses a condition that matters
4: it does the task and meets the conditions, with a small slip
5: it does the task and meets every condition""",
    "truthfulness": """Rate how true each text is: whether it makes things up.

What is made up is of one of three types:
1: it contradicts what is known of the world;
2: it contradicts the instruction, or what was given with it;
3: it contradicts itself.
Give the number of the type that weighs most, or None if nothing is made up.

Ratings:
1: made up from beginning to end
2: much of it is made up, and it matters
3: some of it is made up, the gist is true
4: true but for a detail that hardly matters
5: nothing is made up""",
    "overall-rating": """Rate how good each text is, all in all.

Weigh whether it does what the instruction says, whether it is true, whether it is as sure of itself as it should be, \
and how much it helps.

Ratings:
1: bad: wrong, harmful or beside the point
2: poor: large errors or gaps
3: fair: usable, with faults one notices
4: good: right and useful, with small faults
5: excellent: hard to do better""",
}

PLAIN = {"rationales": "rationale", "ratings": "rating"}
TYPED = {
    "types": "type",
    "rationales": "rationale",
    "ratings": "rating",
    "rationales-for-ratings": "rationale_of_rating",
}

FORM = """Rating: <1, 2, 3, 4 or 5; N/A if it cannot be rated>
Rationale: <why, in a sentence or two>"""
TYPED_FORM = f"""Type: <1, 2, 3 or None>
Rationale: <why it is of that type, in a sentence or two>
{FORM}"""


class UltraFeedback(Task):
    """Rates several answers to an instruction from 1 to 5, and says why.

    A row whose ratings are not as many as its generations fails. A generation that is `None` is not shown to the judge;
    its rating is `None`, as is that of one the judge calls N/A.

    Input columns: `instruction`; `generations`, a list of texts.
    Output columns: `ratings` and `rationales`, a list each; for helpfulness and truthfulness `types` and
        `rationales-for-ratings` too, and there `rationales` are those of the types.

    Example:
        ```python
        from llms import OpenAILLM
        from tasks import UltraFeedback

        judge = UltraFeedback(llm=OpenAILLM(model="gpt-5"), aspect="helpfulness")
        next(judge.process(inputs=[{"instruction": "What's 2 + 2?", "generations": ["4", "It is 5."]}]))
        ```
    """

    aspect: Aspect = Field(default="overall-rating", description="What the judge looks at.")
    use_default_structured_output: bool = Field(
        default=False, description="Hold the judge to JSON with a rating for every text; the model must know how."
    )

    @model_validator(mode="after")
    def _held_only_if_it_can_be(self) -> Self:
        if self.use_default_structured_output and not isinstance(self.llm, StructuredLLM):
            raise ValueError(
                f"`{type(self.llm).__name__}` cannot be held to a schema: leave out `use_default_structured_output`, "
                "and its text is parsed."
            )
        return self

    @property
    def inputs(self) -> Sequence[str]:
        """`instruction` and `generations`."""
        return ["instruction", "generations"]

    @property
    def outputs(self) -> Sequence[str]:
        """Ratings and rationales, with types where the aspect has them."""
        return list(self._parts)

    @property
    def _parts(self) -> dict[str, str]:
        """Each column, and what an element of it is called."""
        return TYPED if self.aspect in ("helpfulness", "truthfulness") else PLAIN

    def format_input(self, row: Row) -> FormattedInput:
        """The criteria, the instruction, the texts, and the form of the answer."""
        texts = _texts(row)
        shown = [f"<text_{number}>\n{text}\n</text_{number}>" for number, text in enumerate(texts, 1)]
        asked = [
            CRITERIA[self.aspect],
            f"<instruction>\n{row['instruction']}\n</instruction>",
            *shown,
            self._form(texts),
        ]
        count = f"{len(texts)} texts" if len(texts) > 1 else "one text"
        chat: ChatType = [
            {"role": "system", "content": SYSTEM.format(count=count)},
            {"role": "user", "content": "\n\n".join(asked)},
        ]
        return (chat, {"format": "json", "schema": self._schema(texts)}) if self.use_default_structured_output else chat

    def format_output(self, text: str | None, row: Row) -> dict[str, Any]:
        """The ratings and what goes with them, a list each, in the order of the generations.

        Raises:
            ValueError: If they are not as many as the generations, or one is not 1 to 5.
        """
        if text is None:
            raise ValueError("the judge gave no answer.")
        texts, held = _texts(row), self.use_default_structured_output
        found = _from_json(text) if held else ratings(text, typed=self._parts is TYPED)
        if len(found) != len(texts):
            came = "1 rating" if len(found) == 1 else f"{len(found)} ratings"
            raise ValueError(f"{came} came for {len(texts)} generation{'s' * (len(texts) > 1)}.")
        if held:
            validate({"texts": found}, self._schema(texts), Draft202012Validator)
        each = iter(found if held else in_order(found))
        judged = [{} if generation is None else next(each) for generation in row["generations"]]
        return {column: [one.get(part) for one in judged] for column, part in self._parts.items()}

    def _form(self, texts: list[str]) -> str:
        if self.use_default_structured_output:
            return "Answer in JSON: `texts` is a list with an object for each text, in their order."
        form = TYPED_FORM if self._parts is TYPED else FORM
        forms = [f"#### Output for Text {number}\n{form}" for number in range(1, len(texts) + 1)]
        return "\n\n".join(["Answer in this form, and write nothing else:", *forms])

    def _schema(self, texts: list[str]) -> dict[str, Any]:
        kinds: dict[str, Any] = {
            "type": {"anyOf": [{"type": "integer", "enum": [1, 2, 3]}, {"type": "null"}]},
            "rating": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
        }
        parts = {part: kinds.get(part, {"type": "string"}) for part in self._parts.values()}
        one = {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}
        each = {"type": "array", "items": one, "minItems": len(texts), "maxItems": len(texts)}
        return {"type": "object", "properties": {"texts": each}, "required": ["texts"], "additionalProperties": False}


def _texts(row: Row) -> list[str]:
    """The generations there are to judge."""
    generations = row["generations"]
    if not isinstance(generations, list | tuple):
        raise ValueError(
            "`generations` must be a list of texts: `group_generations=True` makes one of a row's answers."
        )
    if not (texts := [each for each in generations if each is not None]):
        raise ValueError("there is nothing to judge: `generations` holds no text.")
    return texts


def _from_json(text: str) -> list[dict[str, Any]]:
    match json.loads(text):
        case {"texts": list(found)}:
            return found
        case _:
            raise ValueError("the judge's JSON has no list `texts`.")
