"""Texts of random weights held to twenty schemas, from simple to nasty, and to the document's pattern, on any engine.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.validity LlamaCppLLM

The other engines are `LlamaServerLLM`, `TransformersLLM` and `vLLM`, each in an environment that has it. Prints, for
every structure and budget, how many texts keep to it, how many were reported on their row, and how many passed though
they do not; how often a text was written again; and how the smallest budget is refused.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llms import Fatal
from llms.structured.validation import validation_error
from llms.typing import ChatType
from tests.support import random_weights
from tests.support.schemas import GRADE, SCHEMAS, UNSAYABLE

ROWS = 20
BUDGET = 400
GRADES = (14, 16, 20, 30, 50, 100, 200)
"""Budgets for the document's pattern."""

CHATS: list[ChatType] = [
    [{"role": "user", "content": f"What is {number} + {number % 7}? Answer as you like."}] for number in range(ROWS)
]


class Tally(NamedTuple):
    """What came of the texts of one structure.

    Attributes:
        valid: Texts that keep to it.
        reported: Rows that have an error instead.
        passed: Texts that do not keep to it, and say nothing of it.
        again: How many texts were written beyond the first of each row.
        budget: Tokens they had at most.
        refused: The number of tokens that the refusal of a budget of one named.
    """

    valid: int
    reported: int
    passed: int
    again: int
    budget: int
    refused: int | None


def tally(llm: Any, budget: int, seed: int = 1) -> Tally:
    """Write a text for every row, and judge them."""
    refused = least(llm)
    budget = max(budget, refused or 1)
    outputs = llm.generate(CHATS, max_new_tokens=budget, seed=seed, **random_weights.WILD)
    kept = [
        output.error is None and validation_error(llm.structured_output, output[0] or "") is None for output in outputs
    ]
    errors = sum(output.error is not None for output in outputs)
    again = sum(output.attempts - 1 for output in outputs)
    return Tally(sum(kept), errors, ROWS - sum(kept) - errors, again, budget, refused)


def least(llm: Any) -> int | None:
    """The number that the refusal of a budget of one token names."""
    try:
        llm.generate(CHATS[:1], max_new_tokens=1)
    except Fatal as refusal:
        return int(re.findall(r"`max_new_tokens` of (\d+)", str(refusal))[0])
    return None


def tallies(block: type[Any], settings: dict[str, Any]) -> Iterator[tuple[str, Tally]]:
    """The tally of every structure."""
    for name, schema in {**SCHEMAS, **{f"not sayable: {name}": each for name, each in UNSAYABLE.items()}}.items():
        for budget in (0, BUDGET):
            yield name, tally(block(**settings, structured_output={"format": "json", "schema": schema}), budget)
    for budget in GRADES:
        yield "the document's pattern", tally(block(**settings, structured_output={"schema": GRADE}), budget)


def engine(name: str, folder: Path) -> tuple[type[Any], dict[str, Any]]:
    """The class of an engine, and the settings of a block of it with random weights."""
    import llms

    block = getattr(llms, name)
    match name:
        case "LlamaCppLLM" | "LlamaServerLLM":
            return block, {"model_path": random_weights.gguf_file(folder / "noise.gguf"), "n_threads": 1}
        case "vLLM":
            small = {"enforce_eager": True, "engine_kwargs": {"kv_cache_memory_bytes": 2**28}, "max_model_len": 1024}
            return block, {"model": str(random_weights.checkpoint(folder)), "dtype": "float32", **small}
        case _:
            return block, {"model": str(random_weights.checkpoint(folder))}


def main(name: str) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        block, settings = engine(name, Path(folder))
        print(f"{'':28}{'least':>6}{'budget':>8}{'valid':>7}{'reported':>10}{'passed':>8}{'again':>7}")
        whole: list[Tally] = []
        for structure, found in tallies(block, settings):
            whole.append(found)
            print(
                f"{structure:28}{found.refused or '-':>6}{found.budget:8}{found.valid:7}{found.reported:10}"
                f"{found.passed:8}{found.again:7}",
                flush=True,
            )
        valid, reported, passed = (sum(column) for column in list(zip(*whole, strict=True))[:3])
        print(f"{name}: {valid} of {ROWS * len(whole)} valid, {reported} reported, {passed} passed though they are not")
        block(**settings).unload()


if __name__ == "__main__":
    main(*sys.argv[1:])
