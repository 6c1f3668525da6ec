"""LlamaCppLLM beside the bare loop of llama-cpp-python, on one thread, of the demo model.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.llamacpp

Prints what 32 greedy texts of at most 64 tokens cost by `create_completion`, one after another, and through the block;
what a structure costs; and how far hidden states are from transformers' own.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import torch
import transformers
from llama_cpp import Llama

from llms import LlamaCppLLM, demo
from llms.clients.chat_template import render_chat
from llms.demo.training.to_gguf import to_gguf
from llms.local.automaton import Guide
from llms.typing import ChatType

TOKENS = 64
ROUNDS = 7
STORY = "Write a short story about a dragon that saves a princess from a tower."
CHATS: list[ChatType] = [
    [{"role": "user", "content": f"What is {number} + {number % 7}? " * (number % 5) + STORY}] for number in range(32)
]
GRADE = r"<name>(.*?)</name>.*?<grade>(.*?)</grade>"
ANYTHING = r"[\s\S]*"
"""What the same texts keep to that are held to nothing, so that what differs is the guide."""

GREEDY = {"temperature": 0, "max_new_tokens": TOKENS}
FREE = {"temperature": 1.5, "top_k": 40, "seed": 1, "max_new_tokens": TOKENS}


def block(structure: str | None = None, path: Path = demo.GGUF) -> LlamaCppLLM:
    """The demo model on one thread, held to a pattern where one is given."""
    llm = LlamaCppLLM(model_path=path, n_threads=1, structured_output={"schema": structure} if structure else None)
    llm.load()
    return llm


def measure(**ways: Callable[[], int]) -> dict[str, tuple[float, float]]:
    """Tokens per second, and per CPU second, of each way: the middle one of its rounds, which are taken in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = way()
            found[name].append((tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)))
    return {
        name: (median(each[0] for each in rates), median(each[1] for each in rates)) for name, rates in found.items()
    }


def bare(llama: Llama) -> tuple[list[str], int]:
    """What one would write without us: the template, and a completion for each chat; the texts, and their tokens.

    Its package computes attention in a slower way unless told to, which rounds otherwise; ours is llama.cpp's choice.
    """
    template = llama.metadata["tokenizer.chat_template"]
    answers: list[Any] = [
        llama.create_completion(render_chat(template, chat), max_tokens=TOKENS, temperature=0.0) for chat in CHATS
    ]
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    return [answer["choices"][0]["text"] for answer in answers], tokens


def tokens_of(llm: LlamaCppLLM, **options: Any) -> int:
    """Generate, and count."""
    return sum(output.usage.output_tokens for output in llm.generate(CHATS, **options))


def per_token(llm: LlamaCppLLM) -> float:
    """Microseconds of the guide alone, per row and token: what may come next, and the step to what does."""
    automaton = llm._automaton(llm._engine())
    assert automaton
    luck, walks = np.random.default_rng(1), list[list[int]]()
    for _ in CHATS:
        guide, walk = Guide(automaton, TOKENS), list[int]()
        while len(allowed := guide.allowed_tokens()):
            walk.append(int(luck.choice(allowed)))
            guide.advance(walk[-1])
        walks.append(walk)
    best = float("inf")
    for _ in range(ROUNDS):
        before = time.process_time()
        for walk in walks:
            guide = Guide(automaton, TOKENS)
            for token in walk:
                guide.allowed_tokens()
                assert guide.is_accepting in (True, False)
                guide.advance(token)
        best = min(best, time.process_time() - before)
    return 1e6 * best / sum(map(len, walks))


def exact(path: Path) -> Path:
    """The demo model as a GGUF file with its weights as they are, not rounded to eight bits."""
    add = gguf.GGUFWriter.add_tensor
    with (
        patch.object(gguf, "quantize", lambda tensor, _: tensor),
        patch.object(gguf.GGUFWriter, "add_tensor", lambda writer, name, tensor, **_: add(writer, name, tensor)),
    ):
        to_gguf(demo.CHECKPOINT, path, demo.NAME)
    return path


def apart(path: Path) -> float:
    """How far hidden states are from transformers' own, of the same weights."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT, dtype="float32").eval()
    found = 0.0
    for chat, state in zip(CHATS, block(path=path).get_last_hidden_state(CHATS), strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            own = model(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
        found = max(found, float(np.abs(own - state).max()))
    return found


def main() -> None:
    """Print all figures."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    plain, flash = (
        Llama(str(demo.GGUF), n_ctx=1024, n_threads=1, n_threads_batch=1, flash_attn=each, verbose=False)
        for each in (False, True)
    )
    llm, anything, grade = block(), block(ANYTHING), block(GRADE)
    rates = measure(
        bare_greedy=lambda: bare(plain)[1],
        bare_flash=lambda: bare(flash)[1],
        greedy=lambda: tokens_of(llm, **GREEDY),
        held_greedy=lambda: tokens_of(anything, **GREEDY),
        sampled=lambda: tokens_of(llm, **FREE),
        held_sampled=lambda: tokens_of(anything, **FREE),
        grades=lambda: tokens_of(grade, **FREE),
    )
    for name, (wall, cpu) in rates.items():
        print(f"{name:>14} {wall:7.0f} tokens per second {cpu:7.0f} per CPU second")
    pairs = (
        ("greedy", "bare_greedy"),
        ("greedy", "bare_flash"),
        ("held_greedy", "greedy"),
        ("held_sampled", "sampled"),
    )
    for one, other in pairs:
        wall, cpu = (mine / theirs for mine, theirs in zip(rates[one], rates[other], strict=True))
        print(f"{one} / {other}: {wall:.2f} by the clock, {cpu:.2f} by the CPU")
    for name, held in (("anything", anything), ("grades", grade)):
        print(f"the guide alone, {name}: {per_token(held):.1f} µs per row and token")
    texts = [output[0] for output in llm.generate(CHATS, **GREEDY)]
    for name, llama in (("bare_greedy", plain), ("bare_flash", flash)):
        same = sum(a == b for a, b in zip(texts, bare(llama)[0], strict=True))
        print(f"greedy texts as {name}: {same} of {len(CHATS)}")
        llama.close()
    with tempfile.TemporaryDirectory() as folder:
        print(f"hidden states differ from transformers' own by {apart(exact(Path(folder, 'exact.gguf'))):.1e} at most")


if __name__ == "__main__":
    main()
