"""vLLM beside bare `LLM.chat`: tokens per CPU second of the demo model, in the environment that has vLLM.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.vllm

Prints what 32 chats of 64 new tokens bring bare, through the block and held to a structure, and how far hidden states
are from transformers' own. How many texts keep to their structure is `tests.benchmarks.validity vLLM`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
import transformers
import vllm

from llms import demo
from llms.typing import ChatType
from llms.vllm import vLLM

TOKENS = 64
ROUNDS = 15
STORY = "Write a short story about a dragon that saves a princess from a tower."
CHATS: list[ChatType] = [
    [{"role": "user", "content": f"What is {number} + {number % 7}? " * (number % 5) + STORY}] for number in range(32)
]
DIGITS = rf"\d{{{TOKENS}}}"
"""As long as a text that is held to nothing and must not end, so that what differs is the guide."""

FREE = {"temperature": 1.0, "top_k": 50}
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "engine_kwargs": {"kv_cache_memory_bytes": 2**28, "max_num_seqs": 32},
    "max_model_len": 1024,
}


def cpu_seconds() -> float:
    """What this process and those of vLLM have computed so far."""
    me = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (me, *me.children(recursive=True)))


def measure(**ways: Callable[[], int]) -> dict[str, float]:
    """Tokens per CPU second of each way of generating, taken in turns: of all rounds, for a clock tick is long."""
    tokens, spent = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            before = cpu_seconds()
            tokens[name] += way()
            spent[name] += cpu_seconds() - before
    return {name: tokens[name] / spent[name] for name in ways}


def bare(engine: Any, **options: Any) -> int:
    """What one would write without us."""
    params = vllm.SamplingParams(max_tokens=TOKENS, **options)
    return sum(len(each.outputs[0].token_ids) for each in engine.chat(CHATS, params, use_tqdm=False))


def ours(llm: vLLM, **options: Any) -> int:
    """The same through the block."""
    return sum(output.usage.output_tokens for output in llm.generate(CHATS, max_new_tokens=TOKENS, **options))


def apart(llm: vLLM) -> float:
    """How far hidden states are from transformers' own, at most."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT, dtype="float32").eval()
    found = 0.0
    for chat, state in zip(CHATS, llm.get_last_hidden_state(CHATS), strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            own = model(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
        found = max(found, float(np.abs(own - state).max()))
    return found


def main() -> None:
    """Print all figures."""
    torch.set_num_threads(1)
    llm = vLLM(model=str(demo.CHECKPOINT), **SMALL)
    held = vLLM(model=str(demo.CHECKPOINT), **SMALL, structured_output={"format": "regex", "schema": DIGITS})
    held.load()
    engine = llm._engine()._llm
    rates = measure(
        bare_greedy=lambda: bare(engine, temperature=0),
        greedy=lambda: ours(llm, temperature=0),
        bare_sampled=lambda: bare(engine, **FREE),
        sampled=lambda: ours(llm, **FREE),
        bare_full=lambda: bare(engine, ignore_eos=True, **FREE),
        full=lambda: ours(llm, extra_sampling_params={"ignore_eos": True}, **FREE),
        held=lambda: ours(held, **FREE),
    )
    for name, rate in rates.items():
        print(f"{name:>12} {rate:7.0f} tokens per CPU second")
    for name in ("greedy", "sampled", "full"):
        print(f"{name} / bare {rates[name] / rates[f'bare_{name}']:.3f}", end=", ")
    print(f"held / unheld {rates['held'] / rates['full']:.3f}")
    together, alone = ours_texts(llm, CHATS), [ours_texts(llm, [chat])[0] for chat in CHATS]
    print(f"seeded texts as one by one: {sum(a == b for a, b in zip(together, alone, strict=True))} of {len(CHATS)}")
    llm.unload()
    print(f"hidden states differ from transformers' own by {apart(llm):.1e} at most")


def ours_texts(llm: vLLM, chats: list[ChatType]) -> list[str | None]:
    """Seeded texts."""
    return [output[0] for output in llm.generate(chats, max_new_tokens=TOKENS, seed=1, **FREE)]


if __name__ == "__main__":
    main()
