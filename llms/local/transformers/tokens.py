"""The bytes behind a tokenizer's tokens: what a text is held to, and what it stops at, is spelled in bytes."""

import json
from collections.abc import Callable, Iterable
from typing import Any

SPACE = "\u2581"
"""What SentencePiece and its likes write for a space."""


def token_bytes(tokenizer: Any, ends: Iterable[int]) -> list[bytes]:
    """The bytes every token stands for, by its number; none where it is special or one of those that end a text."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = {*tokenizer.all_special_ids, *ends}
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    spelled = _speller(tokenizer, vocabulary)
    found = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        if number not in special:
            found[number] = spelled(token)
    return found


def _speller(tokenizer: Any, vocabulary: Iterable[str]) -> Callable[[str], bytes]:
    """How the names of this tokenizer's tokens spell bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False) if backend else ""
    if '"ByteLevel"' in decoder:
        letters = _letters()
        return lambda token: bytes(letters[each] for each in token) if letters.keys() >= set(token) else token.encode()
    if SPACE in (decoder if backend else "".join(vocabulary)):
        return _spelled_by_sentencepiece
    if '"WordPiece"' in decoder:
        return lambda token: token[2:].encode() if token.startswith("##") else f" {token}".encode()
    return lambda token: tokenizer.convert_tokens_to_string([token]).encode()


def _letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte: itself where one can see it, a far one otherwise."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + at): byte for at, byte in enumerate(unseen)}


def _spelled_by_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(SPACE, " ").encode()
