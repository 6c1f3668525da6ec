"""Training of the demo model from scratch: tokenizer, weights, checkpoint, GGUF.

Run `python -m llms.demo.training.train` with `torch`, `transformers` and `gguf` installed. The defaults made the
weights that are shipped: 1.8 M parameters, 12.3 M tokens, a last loss of 0.143, in 24 minutes on two busy cores.
"""

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]  # not `llms.transformers`

from llms.demo import CHECKPOINT, GGUF, NAME
from llms.demo.training.corpus import Message, conversation
from llms.demo.training.to_gguf import to_gguf

VOCAB_SIZE = 2048
TOKENIZER_CHATS = 40_000
CONTEXT_LENGTH = 2048
SORTED_CHATS = 2048
"""Chats sorted by length at a time, so that batches have little padding."""
WARM_UP_STEPS = 60
STEPS_PER_REPORT = 50
STEPS_PER_CHECKPOINT = 500

END_OF_TEXT, START, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The tokenizer numbers its special tokens first, in this order.
END_OF_TEXT_ID, START_ID, END_ID = range(len(SPECIAL_TOKENS))
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# llama.cpp knows this split as "qwen2"; another one would need its own code there.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IGNORED_LABEL = -100


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE from the corpus."""
    rng = Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (message["content"] for _ in range(TOKENIZER_CHATS) for message in conversation(rng)),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model() -> LlamaForCausalLM:
    """Create a small Llama with random weights."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=END_OF_TEXT_ID,
        rms_norm_eps=1e-5,
        initializer_range=0.03,
    )
    # Twice as fast as the fused kernels for matrices this small.
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, chat: list[Message]) -> tuple[list[int], list[int]]:
    """Tokenize a chat, and label the assistant's tokens, their end included."""
    newline = tokenizer.encode("\n")
    tokens: list[int] = []
    labels: list[int] = []
    for message in chat:
        header = [START_ID, *tokenizer.encode(f"{message['role']}\n")]
        content = [*tokenizer.encode(message["content"]), END_ID]
        tokens += header + content + newline
        labelled = content if message["role"] == "assistant" else [IGNORED_LABEL] * len(content)
        labels += [IGNORED_LABEL] * len(header) + labelled + [IGNORED_LABEL] * len(newline)
    return tokens, labels


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, tokens_per_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of tokens and labels without end, padded on the right, chats of similar length together."""
    rng = Random(seed)
    while True:
        chats = sorted(
            (encode(tokenizer, conversation(rng)) for _ in range(SORTED_CHATS)), key=lambda chat: len(chat[0])
        )
        ready: list[list[tuple[list[int], list[int]]]] = [[]]
        for chat in chats:
            if (len(ready[-1]) + 1) * len(chat[0]) > tokens_per_batch:
                ready.append([])
            ready[-1].append(chat)
        rng.shuffle(ready)
        for batch in ready:
            yield (
                pad([tokens for tokens, _ in batch], END_OF_TEXT_ID),
                pad([labels for _, labels in batch], IGNORED_LABEL),
            )


def pad(rows: list[list[int]], padding: int) -> Tensor:
    """Pad rows to one tensor."""
    width = max(map(len, rows))
    return torch.tensor([row + [padding] * (width - len(row)) for row in rows])


def compute_loss(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy of the labelled tokens, without logits of the others."""
    targets = labels[:, 1:]
    labelled = targets != IGNORED_LABEL
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Padding comes last and attention looks back, so no mask is needed.
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[labelled])
    return functional.cross_entropy(logits.float(), targets[labelled])


def create_optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Create the optimizers: Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    gains = [weight for weight in model.parameters() if weight.ndim == 1]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": [model.model.embed_tokens.weight]}, {"params": gains, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.05,
        ),
    ]


def average_gradients(model: LlamaForCausalLM, processes: int) -> None:
    """All-reduce the gradients, so that every process takes the same step."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def train(rank: int, options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, meeting_point: str) -> None:
    """Train the model in one of the processes; the first saves it."""
    # Two threads in one process are slower than two processes of one thread each.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=options.processes)
    model = new_model().train()
    optimizers = create_optimizers(model, options.learning_rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: min(1.0, (done + 1) / WARM_UP_STEPS) * (1 - done / options.steps)
        )
        for optimizer in optimizers
    ]
    start, seen, smooth = time.monotonic(), 0, 0.0
    data = batches(tokenizer, seed=7 + 1000 * rank, tokens_per_batch=options.tokens)
    for number, (tokens, labels) in enumerate(islice(data, options.steps), start=1):
        loss = compute_loss(model, tokens, labels)
        model.zero_grad()
        loss.backward()
        average_gradients(model, options.processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        seen += tokens.numel() * options.processes
        smooth = loss.item() if number == 1 else 0.98 * smooth + 0.02 * loss.item()
        if rank == 0 and number % STEPS_PER_CHECKPOINT == 0:
            save(model, tokenizer, options)
        if rank == 0 and number % STEPS_PER_REPORT == 0:
            elapsed = time.monotonic() - start
            print(
                f"step {number}/{options.steps}  {elapsed:.0f} s  {seen / 1e6:.2f} M tokens  "
                f"{seen / elapsed:.0f} tokens/s  loss {smooth:.4f}",
                flush=True,
            )
    if rank == 0:
        save(model, tokenizer, options)
    dist.destroy_process_group()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> None:
    """Write the checkpoint and the GGUF, also while training, to try the model."""
    copy.deepcopy(model).half().save_pretrained(options.checkpoint)
    tokenizer.save_pretrained(options.checkpoint)
    to_gguf(options.checkpoint, options.gguf, NAME)


def main() -> None:
    """Train with the options of the command line and write the checkpoint and the GGUF."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2050, help="optimizer steps")
    parser.add_argument("--tokens", type=int, default=3072, help="tokens of a batch, in each process")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="the highest learning rate")
    parser.add_argument("--processes", type=int, default=2, help="training processes, of one thread each")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder for the Hugging Face form")
    parser.add_argument("--gguf", type=Path, default=GGUF, help="file for llama.cpp")
    options = parser.parse_args()

    # The default allocator returns large blocks to the system at once, and every step asks for them again.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = train_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        spawn(train, (options, tokenizer, f"{folder}/meeting"), nprocs=options.processes)


if __name__ == "__main__":
    main()
