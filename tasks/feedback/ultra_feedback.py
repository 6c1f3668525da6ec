"""A judge of several generations for an instruction."""

import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from jsonschema import Draft202012Validator, validate
from pydantic import Field, model_validator

from llms import StructuredLLM
from tasks.feedback.ratings import parse_ratings, sort_by_number
from tasks.task import Task
from tasks.typing import ChatType, FormattedInput, Row

Aspect = Literal["helpfulness", "honesty", "instruction-following", "truthfulness", "overall-rating"]

SYSTEM_PROMPT = """\
You judge texts that answer an instruction. You get the instruction and {count}, and rate each on its \
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

PLAIN_KEYS = {"rationales": "rationale", "ratings": "rating"}
TYPED_KEYS = {
    "types": "type",
    "rationales": "rationale",
    "ratings": "rating",
    "rationales-for-ratings": "rationale_of_rating",
}

FORMAT = """Rating: <1, 2, 3, 4 or 5; N/A if it cannot be rated>
Rationale: <why, in a sentence or two>"""
TYPED_FORMAT = f"""Type: <1, 2, 3 or None>
Rationale: <why it is of that type, in a sentence or two>
{FORMAT}"""


class UltraFeedback(Task):
    """Rate several generations for an instruction from 1 to 5, with a rationale for each.

    A row fails unless it gets one rating per generation. A generation that is `None` is not shown to the judge; its
    rating is `None`, as is that of one the judge rates N/A.

    Input columns: `instruction`; `generations`, a list of texts.
    Output columns: `ratings` and `rationales`, lists; for helpfulness and truthfulness also `types` and
        `rationales-for-ratings`, and `rationales` are then those of the types.

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
    def _validate_structured_output(self) -> Self:
        if self.use_default_structured_output and not isinstance(self.llm, StructuredLLM):
            raise ValueError(
                f"`{type(self.llm).__name__}` cannot be constrained to a schema: leave out "
                "`use_default_structured_output`, and its text is parsed."
            )
        return self

    @property
    def inputs(self) -> Sequence[str]:
        """`instruction` and `generations`."""
        return ["instruction", "generations"]

    @property
    def outputs(self) -> Sequence[str]:
        """Ratings and rationales, with types if the aspect has them."""
        return list(self._keys)

    @property
    def _keys(self) -> dict[str, str]:
        """The key in a parsed rating for each output column."""
        return TYPED_KEYS if self.aspect in ("helpfulness", "truthfulness") else PLAIN_KEYS

    def format_input(self, row: Row) -> FormattedInput:
        """Return a chat with the criteria, the instruction, the texts and the output format."""
        texts = _texts(row)
        tagged = [f"<text_{number}>\n{text}\n</text_{number}>" for number, text in enumerate(texts, 1)]
        sections = [
            CRITERIA[self.aspect],
            f"<instruction>\n{row['instruction']}\n</instruction>",
            *tagged,
            self._output_format(texts),
        ]
        count = f"{len(texts)} texts" if len(texts) > 1 else "one text"
        chat: ChatType = [
            {"role": "system", "content": SYSTEM_PROMPT.format(count=count)},
            {"role": "user", "content": "\n\n".join(sections)},
        ]
        return (chat, {"format": "json", "schema": self._schema(texts)}) if self.use_default_structured_output else chat

    def format_output(self, text: str | None, row: Row) -> dict[str, Any]:
        """Parse ratings, rationales and types into lists, in the order of the generations.

        Raises:
            ValueError: If their number is not that of the generations, or a rating is not 1 to 5.
        """
        if text is None:
            raise ValueError("the judge gave no answer.")
        texts, structured = _texts(row), self.use_default_structured_output
        ratings = _parse_json(text) if structured else parse_ratings(text, typed=self._keys is TYPED_KEYS)
        if len(ratings) != len(texts):
            count = "1 rating" if len(ratings) == 1 else f"{len(ratings)} ratings"
            raise ValueError(f"{count} came for {len(texts)} generation{'s' * (len(texts) > 1)}.")
        if structured:
            validate({"texts": ratings}, self._schema(texts), Draft202012Validator)
        remaining = iter(ratings if structured else sort_by_number(ratings))
        aligned = [{} if generation is None else next(remaining) for generation in row["generations"]]
        return {column: [rating.get(key) for rating in aligned] for column, key in self._keys.items()}

    def _output_format(self, texts: list[str]) -> str:
        if self.use_default_structured_output:
            return "Answer in JSON: `texts` is a list with an object for each text, in their order."
        form = TYPED_FORMAT if self._keys is TYPED_KEYS else FORMAT
        forms = [f"#### Output for Text {number}\n{form}" for number in range(1, len(texts) + 1)]
        return "\n\n".join(["Answer in this form, and write nothing else:", *forms])

    def _schema(self, texts: list[str]) -> dict[str, Any]:
        kinds: dict[str, Any] = {
            "type": {"anyOf": [{"type": "integer", "enum": [1, 2, 3]}, {"type": "null"}]},
            "rating": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
        }
        keys = {key: kinds.get(key, {"type": "string"}) for key in self._keys.values()}
        rating = {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}
        ratings = {"type": "array", "items": rating, "minItems": len(texts), "maxItems": len(texts)}
        return {
            "type": "object",
            "properties": {"texts": ratings},
            "required": ["texts"],
            "additionalProperties": False,
        }


def _texts(row: Row) -> list[str]:
    """Return the generations to judge, which are those that are not `None`."""
    generations = row["generations"]
    if not isinstance(generations, list | tuple):
        raise ValueError(
            "`generations` must be a list of texts: `group_generations=True` makes one of a row's answers."
        )
    if not (texts := [each for each in generations if each is not None]):
        raise ValueError("there is nothing to judge: `generations` holds no text.")
    return texts


def _parse_json(text: str) -> list[dict[str, Any]]:
    match json.loads(text):
        case {"texts": list(ratings)}:
            return ratings
        case _:
            raise ValueError("the judge's JSON has no list `texts`.")
