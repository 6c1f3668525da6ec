"""The bytes of a tokenizer's tokens: structures and stop texts are matched byte by byte."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from llms.local.automaton import Compiler

SENTENCEPIECE_SPACE = "\u2581"


def token_bytes(tokenizer: Any, end_tokens: Iterable[int]) -> list[bytes]:
    """Return the bytes of every token, by its id; empty for special tokens and those that end a text."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = {*tokenizer.all_special_ids, *end_tokens}
    special |= {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    decode = _token_decoder(tokenizer, vocabulary)
    spellings = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        if token_id not in special:
            spellings[token_id] = decode(token)
    return spellings


def compiler_of(spellings: list[bytes], end_tokens: list[int]) -> Compiler:
    """Create the compiler of structures for a vocabulary.

    Args:
        spellings: Bytes of every token, by its id.
        end_tokens: Tokens that end a text.
    """
    token_ids: dict[bytes, list[int]] = {}
    for token_id, spelling in enumerate(spellings):
        if spelling:
            token_ids.setdefault(spelling, []).append(token_id)
    return Compiler(token_ids, end_tokens[0] if end_tokens else len(spellings))


def _token_decoder(tokenizer: Any, vocabulary: Iterable[str]) -> Callable[[str], bytes]:
    """Return how the tokens of this tokenizer are decoded to bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False) if backend else ""
    if '"ByteLevel"' in decoder:
        alphabet = _byte_level_alphabet()
        return lambda token: (
            bytes(alphabet[each] for each in token) if alphabet.keys() >= set(token) else token.encode()
        )
    if SENTENCEPIECE_SPACE in (decoder if backend else "".join(vocabulary)):
        return _decode_sentencepiece
    if '"WordPiece"' in decoder:
        return lambda token: token[2:].encode() if token.startswith("##") else f" {token}".encode()
    return lambda token: tokenizer.convert_tokens_to_string([token]).encode()


def _byte_level_alphabet() -> dict[str, int]:
    """Map the characters of byte-level BPE to bytes: printable ones to themselves, others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _decode_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(SENTENCEPIECE_SPACE, " ").encode()
