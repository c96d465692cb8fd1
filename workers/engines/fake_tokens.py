"""The fake engine's vocabulary and tokenizer: all bytes, a few words, pieces of characters."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Mapping

from workers.templates import load_template

_SPECIAL = ("<|bos|>", "<|im_start|>", "<|im_end|>")
BOS, _, EOS = range(256, 259)

_TEXTS = (
    *(" a", " and", " answer", " are", " as", " at", " batch", " be", " by", " caf", " each"),
    *(" every", " fast", " for", " from", " has", " in", " is", " it", " job", " key", " line"),
    *(" long", " model", " next", " of", " on", " one", " order", " place", " prompt", " queue"),
    *(" reads", " runs", " server", " slot", " step", " text", " that", " the", " then", " this"),
    *(" to", " token", " waits", " with", " word", " worker", ",", ".", "!", "?", ":", "\n"),
)
_PIECES = (
    "本".encode()[:2],
    "語".encode()[1:],
)  # parts of characters: they decode to nothing alone

VOCABULARY: tuple[bytes, ...] = (
    *(bytes([byte]) for byte in range(256)),
    *(b"" for _ in _SPECIAL),  # special tokens have no text
    *(text.encode() for text in _TEXTS),
    *_PIECES,
)
_IDS = {text: 259 + at for at, text in enumerate(_TEXTS)} | {
    text: 256 + at for at, text in enumerate(_SPECIAL)
}
WORDS = tuple(_IDS[text] for text in _TEXTS if text != " caf")
_HON, _GO = len(VOCABULARY) - 2, len(VOCABULARY) - 1

_CHARACTERS: tuple[tuple[int, ...], ...] = (
    (_IDS[" caf"], *"é".encode()),
    tuple("ü".encode()),
    tuple("日".encode()),
    (_HON, "本".encode()[2]),
    ("語".encode()[0], _GO),
    tuple("🙂".encode()),
    tuple("🚀".encode()),
)
UNITS = (*((word,) for word in WORDS), *_CHARACTERS, *_CHARACTERS)
"""What the model writes: words, and often characters that take 2 to 4 tokens."""

_IN_THREAD = 20_000  # characters; encoding them takes some 5 ms


class FakeDetokenizer:
    """Bytes to text; a broken character gives U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the characters that the token completes."""
        return self._decoder.decode(VOCABULARY[token])

    def flush(self) -> str:
        """Return U+FFFD if a character was left incomplete."""
        return self._decoder.decode(b"", final=True)


class FakeTokenizer:
    """Reversible for every text: what is not a word becomes its UTF-8 bytes."""

    def __init__(self) -> None:
        self.chat_template: str | None = load_template("chatml")
        self.special_tokens: Mapping[str, str] = {
            "bos_token": _SPECIAL[0],
            "eos_token": _SPECIAL[2],
        }
        longest_first = sorted(_IDS, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    async def encode(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        """Return the token ids, after a BOS token with `add_special`."""
        tokens = (
            self._encode(text)
            if len(text) < _IN_THREAD
            else await asyncio.to_thread(self._encode, text)
        )
        return (BOS, *tokens) if add_special else tuple(tokens)

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for at, part in enumerate(self._split.split(text)):
            if at % 2:
                tokens.append(_IDS[part])
            else:
                tokens += part.encode(errors="replace")
        return tokens

    def detokenizer(self) -> FakeDetokenizer:
        """Return a new one."""
        return FakeDetokenizer()

    def piece(self, token: int) -> bytes:
        """Return what the token stands for."""
        special = token - BOS
        if 0 <= special < len(_SPECIAL):
            return _SPECIAL[special].encode()
        return VOCABULARY[token]
