"""The tokenizer of a transformers model, and the way back from tokens to text.

Text comes back through bytes: every token stands for some bytes, and a character is given out when
its last byte is there. That needs no look at earlier tokens, and so it is the same however a
sequence is cut. A space that the first token brings is kept: the output continues a prompt.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from queueserve.errors import EngineError
from workers.engines.base import Detokenizer

Backend: TypeAlias = Any  # a PreTrainedTokenizer: transformers is not followed by mypy

_SHORT = 2000  # characters that are encoded in well under a millisecond
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    shifted = {chr(256 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in own} | shifted


_ALPHABET = _byte_alphabet()


def _byte_level(piece: str) -> bytes:
    return bytes(_ALPHABET[char] for char in piece)


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()


def _piece_decoder(backend: Backend) -> Callable[[str], bytes] | None:
    """How this vocabulary writes bytes; None for a kind that is neither of the two big ones."""
    fast = getattr(backend, "backend_tokenizer", None)
    if fast is None:
        return _sentencepiece if hasattr(backend, "sp_model") else None
    decoder = json.dumps(json.loads(fast.to_str())["decoder"])
    if '"ByteLevel"' in decoder:
        return _byte_level
    if '"Metaspace"' in decoder or json.dumps(_SPACE) in decoder:
        return _sentencepiece
    return None


class _ByteDetokenizer:
    """For vocabularies whose tokens are bytes."""

    def __init__(self, to_bytes: Callable[[int], bytes]) -> None:
        self._to_bytes = to_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._utf8.decode(self._to_bytes(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowDetokenizer:
    """For all others: the text that a token adds is what decoding with it has more than without."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._before = ""  # the text of those tokens that is given out

    def feed(self, token: int) -> str:
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if text.endswith("\ufffd") or len(text) <= len(self._before):
            return ""
        new = text[len(self._before) :]
        # One token stays as the context that decides the space before the next.
        self._tokens = self._tokens[-1:]
        self._before = self._decode(self._tokens)
        return new

    def flush(self) -> str:
        return self._decode(self._tokens)[len(self._before) :]


class TransformersTokenizer:
    """Satisfies `workers.engines.base.Tokenizer`."""

    chat_template: str | None
    special_tokens: Mapping[str, str]

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._fast = getattr(backend, "backend_tokenizer", None)
        if self._fast is not None:  # some models' files ask for a cut at 512 tokens
            self._fast.no_truncation()
            self._fast.no_padding()
        self._lock = threading.Lock()  # tokenizers without the fast library are not thread-safe
        templates = backend.chat_template
        self.chat_template = templates.get("default") if isinstance(templates, dict) else templates
        self.special_tokens = {
            name: str(token) for name, token in backend.special_tokens_map.items()
        }
        self._decode_piece = _piece_decoder(backend)
        self._special = frozenset(backend.all_special_ids)
        self._added: dict[int, bytes] = {
            id_: token.content.encode()
            for id_, token in backend.added_tokens_decoder.items()
            if not token.special
        }
        self._special |= backend.added_tokens_decoder.keys() - self._added.keys()
        self._bytes: dict[int, bytes] = {}

    async def encode(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        """Satisfies `workers.engines.base.Tokenizer`; a long text is encoded in a thread."""
        if len(text) <= _SHORT and self._fast is not None:
            return self._encode(text, add_special)
        return await asyncio.to_thread(self._encode, text, add_special)

    def _encode(self, text: str, add_special: bool) -> tuple[int, ...]:  # noqa: FBT001
        if self._fast is not None:
            return tuple(self._fast.encode(text, add_special_tokens=add_special).ids)
        with self._lock:
            return tuple(self._backend.encode(text, add_special_tokens=add_special))

    def detokenizer(self) -> Detokenizer:
        """Satisfies `workers.engines.base.Tokenizer`."""
        if self._decode_piece is not None:
            return _ByteDetokenizer(self._token_bytes)
        return _WindowDetokenizer(self._decode)

    def piece(self, token: int) -> bytes:
        """Satisfies `workers.engines.base.Tokenizer`."""
        if self._decode_piece is None:
            return str(self._backend.decode([token])).encode()
        if known := self._token_bytes(token):
            return known
        return (self._backend.convert_ids_to_tokens(token) or "").encode()

    def pieces(self, count: int) -> list[bytes]:
        """The bytes of the tokens 0 to `count` - 1, empty for those without text.

        Raises EngineError for a tokenizer whose tokens are no bytes.
        """
        if self._decode_piece is None:
            raise EngineError("the tokens of this model's tokenizer do not stand for bytes")
        return [self._token_bytes(token) for token in range(count)]

    def _token_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._read_token(token)
        return known

    def _read_token(self, token: int) -> bytes:
        if token in self._special:
            return b""
        if token in self._added:
            return self._added[token]
        piece: str | None = self._backend.convert_ids_to_tokens(token)
        if piece is None or self._decode_piece is None:
            return b""  # models often have more rows than their tokenizer has tokens
        return self._decode_piece(piece)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._backend.decode(tokens, skip_special_tokens=True))
