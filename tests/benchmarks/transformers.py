"""TransformersLLM beside plain `model.generate`: tokens per CPU second, on one thread, of the demo model.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.transformers

Prints what 32 chats of 64 new tokens cost bare, through the block and one by one; what a structure costs; and how far
hidden states are from transformers' own.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from llms import TransformersLLM, demo
from llms.local.generation import TokenSequence
from llms.local.transformers.batch import Batch
from llms.typing import ChatType

TOKENS = 64
ROUNDS = 7
STORY = "Write a short story about a dragon that saves a princess from a tower."
CHATS: list[ChatType] = [
    [{"role": "user", "content": f"What is {number} + {number % 7}? " * (number % 5) + STORY}] for number in range(32)
]
GRADE = {"format": "regex", "schema": r"<name>(.*?)</name>.*?<grade>(.*?)</grade>"}
GREEDY = {"temperature": 0, "max_new_tokens": TOKENS}
FREE = {"do_sample": True, "temperature": 1.0, "top_k": 50, "max_new_tokens": TOKENS}


def measure(**ways: Callable[[], int]) -> dict[str, float]:
    """Tokens per CPU second of each way of generating, taken in turns; the best of its rounds, for noise only adds."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            before = time.process_time()
            tokens = way()
            found[name].append(tokens / (time.process_time() - before))
    return {name: max(rates) for name, rates in found.items()}


def tokens_of(llm: TransformersLLM, chats: list[ChatType], **options: Any) -> int:
    """Generate, and count."""
    return sum(output.usage.output_tokens for output in llm.generate(chats, **options))


def steps_of(llm: TransformersLLM, chats: list[ChatType], **options: Any) -> int:
    """Generate, and count what was computed: a row whose text has ended is, until the last one has."""
    return len(chats) * max(output.usage.output_tokens for output in llm.generate(chats, **options))


def bare(model: Any, tokenizer: Any, **options: Any) -> int:
    """What one would write without us: template, padding on the left, `generate`, decoding."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in CHATS]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    written = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    tokenizer.batch_decode(written, skip_special_tokens=True)
    ends = [row.index(model.config.eos_token_id) + 1 for row in written.tolist() if model.config.eos_token_id in row]
    return sum(ends) + written.shape[1] * (len(CHATS) - len(ends))


def per_row_and_token(llm: TransformersLLM) -> float:
    """Microseconds of the guide alone: masks, and the steps from token to token."""
    engine = llm._engine()
    automaton = llm._automaton(engine)
    prompts = torch.zeros((32, 8), dtype=torch.long)
    texts = [TokenSequence([0] * 8, TOKENS, 1, row, automaton=automaton) for row in range(32)]
    batch = Batch(torch, texts, prompts, torch.ones_like(prompts), engine.end_tokens, engine.token_bytes)
    scores = torch.randn((32, engine.model.config.vocab_size))
    spent, steps, tokens = 0.0, 0, prompts
    while None in batch.finish_reasons:
        steps += batch.finish_reasons.count(None)
        before = time.process_time()
        allowed = batch.mask_logits(tokens, scores)
        spent += time.process_time() - before
        chosen = torch.multinomial(allowed.softmax(-1), 1)
        tokens = torch.cat([tokens, chosen], dim=1)
        before = time.process_time()
        batch.stop(tokens, allowed)
        spent += time.process_time() - before
    return 1e6 * spent / steps


def main() -> None:
    """Print all figures."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT, dtype="float32").eval()
    llm = TransformersLLM(model=str(demo.CHECKPOINT))
    held = TransformersLLM(model=str(demo.CHECKPOINT), structured_output=GRADE)
    held.load()

    rates = measure(
        bare_greedy=lambda: bare(model, tokenizer, max_new_tokens=TOKENS, do_sample=False),
        greedy=lambda: tokens_of(llm, CHATS, **GREEDY),
        bare_sampled=lambda: bare(model, tokenizer, max_new_tokens=TOKENS, do_sample=True, top_k=50),
        sampled=lambda: tokens_of(llm, CHATS, **FREE),
        unheld_steps=lambda: steps_of(llm, CHATS, **FREE),
        held_steps=lambda: steps_of(held, CHATS, **FREE),
        one_by_one=lambda: sum(tokens_of(llm, [chat], **GREEDY) for chat in CHATS[:8]),
    )
    for name, rate in rates.items():
        print(f"{name:>14} {rate:7.0f} tokens per CPU second")
    print(f"greedy / bare {rates['greedy'] / rates['bare_greedy']:.3f}", end=", ")
    print(f"sampled / bare {rates['sampled'] / rates['bare_sampled']:.3f}", end=", ")
    print(f"greedy / one by one {rates['greedy'] / rates['one_by_one']:.1f}", end=", ")
    print(f"held / unheld {rates['held_steps'] / rates['unheld_steps']:.3f}")
    print(f"the guide alone: {per_row_and_token(held):.1f} µs per row and token")

    alone = [llm.generate([chat], **GREEDY)[0] for chat in CHATS]
    together = llm.generate(CHATS, **GREEDY)
    print(f"greedy texts as one by one: {sum(a == b for a, b in zip(alone, together, strict=True))} of {len(CHATS)}")
    sampled = {"seed": 1, **FREE}
    alone = [llm.generate([chat], **sampled)[0] for chat in CHATS]
    together = llm.generate(CHATS, **sampled)
    print(f"seeded texts as one by one: {sum(a == b for a, b in zip(alone, together, strict=True))} of {len(CHATS)}")
    states = llm.get_last_hidden_state(CHATS)
    apart = 0.0
    for chat, state in zip(CHATS, states, strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            own = model(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
        apart = max(apart, float(np.abs(own - state).max()))
    print(f"hidden states differ from transformers' own by {apart:.1e} at most")


if __name__ == "__main__":
    main()
