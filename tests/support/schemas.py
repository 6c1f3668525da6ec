"""Structures of every engine's tests: classes, patterns, and twenty schemas from simple to nasty."""

from datetime import date
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, Field

GRADE = r"<name>(.*?)</name>.*?<grade>(.*?)</grade>"
"""The pattern of the documentation that this project started from."""

PATTERNS = [
    GRADE,
    r"^(\d{3})-(\d{4})$",
    r"[\d.]{3}[[&~é]",
    "(?:Ja|Nein|日本)!*",
    "^yes, sir$|^no, sir$",
    r"(?i:ok)[^\W_]\s?\S",
]


class User(BaseModel):
    name: str
    last_name: str
    id: int


class Grade(Enum):
    A = "A"
    B = "B"


class Course(BaseModel):
    title: str = Field(max_length=12)
    grade: Grade | None = None


class Student(BaseModel):
    name: str = Field(pattern=r"^[A-Z][a-z]+$")
    kind: Literal["full-time", "part-time"]
    age: int = Field(ge=18, le=99)
    passed: bool
    courses: list[Course] = Field(min_length=1, max_length=2)
    nickname: str | None = None


class Coded(BaseModel):
    code: str = Field(pattern=r"^\d{2}-.\D[^a]$")
    either: str = Field(pattern="yes|no")
    born: date


def record(*optional: str, **properties: Any) -> dict[str, Any]:
    """Create the schema of an object with these properties and no others, all required but for the `optional`."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


TEXT: dict[str, Any] = {"type": "string", "maxLength": 8}
WHOLE: dict[str, Any] = {"type": "integer", "minimum": -40, "exclusiveMaximum": 1700}
TREE = {"$ref": "#/$defs/tree"}

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": User.model_json_schema(),
    "nested, optional": Student.model_json_schema(),
    "enum, const": record(
        kind={"const": "a b"},
        of={"enum": ["ä", 'q"', 2, None, 1.5, True, [1, "x"]]},
        only={"type": "integer", "enum": [1, "1"]},
    ),
    "integers": record(
        a=WHOLE, b={"type": "integer", "minimum": 10**6}, c={"type": "integer", "exclusiveMaximum": -99999}
    ),
    "numbers": record(
        share={"type": "number", "minimum": 0, "maximum": 1},
        cold={"type": "number", "exclusiveMinimum": -273.15, "exclusiveMaximum": -0.5},
        free={"type": "number"},
    ),
    "multiples": record(even={"type": "integer", "minimum": -100, "maximum": 100, "multipleOf": 2}),
    "anyOf": record(value={"anyOf": [WHOLE, {"type": "null"}, record(x=TEXT), {"type": "array", "items": WHOLE}]}),
    "oneOf": {
        "oneOf": [record(kind={"const": "cat"}, lives=WHOLE), record(kind={"const": "dog"}, name=TEXT)],
        "discriminator": {"propertyName": "kind"},
    },
    "allOf": {
        "allOf": [{"$ref": "#/$defs/named"}, {"properties": {"age": {"minimum": 18}}, "required": ["age"]}],
        "$defs": {
            "named": {"type": "object", "properties": {"name": TEXT, "age": {"type": "integer", "maximum": 120}}}
        },
    },
    "patterns": record(
        plate={"type": "string", "pattern": r"^[A-Z]{1,3}-[A-Z]{1,2} \d{1,4}$"},
        quoted={"type": "string", "pattern": r'^"\w+\\[^x]\S"$'},
        either={"type": "string", "pattern": "^a$|^b$|^日本$"},
        sized={"type": "string", "pattern": "^[a-z]+$", "minLength": 3, "maxLength": 6},
    ),
    "formats": record(
        day={"type": "string", "format": "date"},
        at={"type": "string", "format": "date-time"},
        id={"type": "string", "format": "uuid"},
        mail={"type": "string", "format": "email"},
        host={"type": "string", "format": "ipv4"},
    ),
    "arrays": record(
        few={"type": "array", "items": TEXT, "minItems": 2, "maxItems": 4},
        none={"type": "array", "items": WHOLE, "maxItems": 0},
        grid={
            "type": "array",
            "items": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 3, "maxItems": 3},
            "minItems": 2,
        },
    ),
    "tuples": record(
        pair={"type": "array", "prefixItems": [TEXT, WHOLE], "minItems": 2, "maxItems": 2},
        more={"type": "array", "prefixItems": [TEXT], "items": {"type": "boolean"}, "minItems": 3},
        some={"type": "array", "prefixItems": [WHOLE, WHOLE, TEXT]},
    ),
    "recursive": {
        **TREE,
        "$defs": {"tree": record("left", "right", value=WHOLE, left=TREE, right={"anyOf": [TREE, {"type": "null"}]})},
    },
    "mutually recursive": {
        "$ref": "#/$defs/folder",
        "$defs": {
            "folder": record(name=TEXT, entries={"type": "array", "items": {"$ref": "#/$defs/entry"}, "maxItems": 2}),
            "entry": {"anyOf": [{"$ref": "#/$defs/folder"}, {"type": "string", "maxLength": 4}]},
        },
    },
    "all optional": record("a", "b", "c", "d", "e", a=TEXT, b=WHOLE, c={"type": "boolean"}, d={"type": "null"}, e=TEXT),
    "unicode keys": record(
        **{"größe": WHOLE, "名前": TEXT, 'with "quotes"\n': {"type": "boolean"}, "a/b~c": {"type": "null"}}
    ),
    "maps": record(
        scores={"type": "object", "additionalProperties": WHOLE, "propertyNames": {"pattern": "^[a-z]{1,8}$"}},
        codes={"type": "object", "patternProperties": {"^x_[0-9]+$": TEXT}, "additionalProperties": False},
    ),
    "long enum": record(word={"enum": [f"choice number {at} of many" for at in range(300)]}),
    "deep, lengths": record(
        a=record(
            b=record(c=record(d=record(e=record(f={"type": ["string", "null"], "minLength": 5, "maxLength": 60}))))
        )
    ),
}
"""Schemas that a regular expression can say: each text must be valid at the first attempt."""

UNSAYABLE: dict[str, dict[str, Any]] = {
    "not": record(n={"type": "integer", "minimum": 0, "maximum": 9, "not": {"enum": [1, 2, 3, 4]}}),
    "unique": record(
        of={"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 3, "maxItems": 3, "uniqueItems": True}
    ),
    "multiple": record(n={"type": "integer", "minimum": 0, "multipleOf": 3}),
    "contains": {"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 2}, "maxItems": 3},
}
"""Schemas that no regular expression can say: validated afterwards, and generated again or reported."""
