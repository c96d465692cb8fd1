"""The bytes that each token stands for, and text out of them.

llama.cpp has the same table inside, but gives it to nobody: its server sends text, and holds tokens
back until their bytes make whole characters. With the table, what was held back can be told apart.
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Mapping, Sequence

from queueserve.errors import EngineError
from workers.engines.gguf_header import Header

_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6  # tokenizer.ggml.token_type; all others have no text
_MOST_WAYS, _LONGEST = 8, 64  # beyond these it is no text, but bytes drawn at random
_LEADS = ((0xE0, 0xC0, 2), (0xF0, 0xE0, 3), (0xF8, 0xF0, 4))  # mask, lead byte, character's bytes
_SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",  # spelt so in the format
    "pad_token": "tokenizer.ggml.padding_token_id",
    "cls_token": "tokenizer.ggml.cls_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}


def _byte_level_table() -> dict[int, int]:
    # The alphabet of byte-level BPE (GPT-2): printable bytes stand for themselves, the others for
    # the characters from U+0100 on, in order. Bytes that do not stand for themselves must not pass.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    stand_ins = {0x100 + index: byte for index, byte in enumerate(others)}
    return stand_ins | dict.fromkeys(others, 0xFFFF)


def _byte_level_pieces(tokens: Sequence[str], kinds: Sequence[int]) -> list[bytes]:
    table = _byte_level_table()

    def piece(text: str, kind: int) -> bytes:
        if kind == _NORMAL:
            with contextlib.suppress(UnicodeEncodeError):  # not of the alphabet: plain text
                return text.translate(table).encode("latin-1")
        return text.encode() if kind in (_NORMAL, _USER_DEFINED) else b""

    return [piece(text, kind) for text, kind in zip(tokens, kinds, strict=True)]


def _sentencepiece_pieces(tokens: Sequence[str], kinds: Sequence[int]) -> list[bytes]:
    def piece(text: str, kind: int) -> bytes:
        if kind == _BYTE:  # <0x0A>
            return bytes([int(text[3:-1], 16)])
        if kind == _NORMAL:
            return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
        return text.encode() if kind == _USER_DEFINED else b""

    return [piece(text, kind) for text, kind in zip(tokens, kinds, strict=True)]


# In a GGUF file, WordPiece ("bert") is written as SentencePiece is: words begin with its sign.
_READERS = {
    "gpt2": _byte_level_pieces,
    "llama": _sentencepiece_pieces,
    "bert": _sentencepiece_pieces,
}


class Vocabulary:
    """The tokens of a model: their bytes, its special tokens and its chat template."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        names: Sequence[str] = (),
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.pieces = pieces
        self.names = names  # as the model's file has them; special tokens have nothing else
        self.special_tokens = special_tokens or {}
        self.chat_template = chat_template
        self._tokens: dict[bytes, list[int]] = {}
        for token, piece in enumerate(pieces):
            self._tokens.setdefault(piece, []).append(token)

    @classmethod
    def read(cls, header: Header) -> Vocabulary:
        """The vocabulary in a GGUF header. Raises EngineError for a kind that is not known."""
        metadata = header.metadata
        kind = metadata.get("tokenizer.ggml.model", "none")
        tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
        if kind not in _READERS or not tokens:
            raise EngineError(
                f"the model's tokenizer is of kind {kind!r}; "
                f"the llama_cpp engine knows {', '.join(sorted(_READERS))}"
            )
        kinds = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
        return cls(
            _READERS[kind](tokens, kinds),
            names=tokens,
            special_tokens={
                name: tokens[metadata[key]] for name, key in _SPECIAL.items() if key in metadata
            },
            chat_template=metadata.get("tokenizer.chat_template"),
        )

    def plain_token(self) -> int:
        """A token whose text is one whole ASCII letter."""
        for letter in b"abcdefghijklmnopqrstuvwxyz":
            if tokens := self._tokens.get(bytes([letter])):
                return tokens[0]
        raise EngineError("the model's vocabulary has no ASCII letters")

    def held_back(self, data: bytes, count: int) -> list[tuple[int, ...]]:
        """All series of `count` tokens that make `data` and were held back; none if over 8.

        The text ended inside a character after each of them, so that the server sent none. Tokens
        without text may be among them, but not first; series without such come first.
        """
        if max(len(data), count) > _LONGEST:
            return []
        inside = [end for end in range(len(data), 0, -1) if _ends_inside(data[:end])]
        known: dict[tuple[int, int], list[tuple[int, ...]]] = {}

        def ways(start: int, left: int) -> list[tuple[int, ...]]:
            if left == 0:
                return [()] if start == len(data) else []
            if (start, left) not in known:
                found = [
                    (token, *rest)
                    for end in inside  # long pieces first: so most vocabularies write
                    if end >= start
                    for token in self._tokens.get(data[start:end], ())
                    for rest in ways(end, left - 1)
                ]
                known[start, left] = found[: _MOST_WAYS + 1]
            return known[start, left]

        found = ways(0, count)
        if len(found) > _MOST_WAYS:
            return []
        return sorted(found, key=lambda way: sum(not self.pieces[token] for token in way))


def _ends_inside(data: bytes) -> bool:
    """What llama.cpp takes for the end of a text inside a character: a lead byte too near it."""
    return any(
        byte & mask == lead
        for distance, byte in enumerate(data[:-4:-1], 1)
        for mask, lead, length in _LEADS
        if distance < length
    )


class Utf8Detokenizer:
    """Text from tokens, in whole characters; what is no UTF-8 becomes U+FFFD.

    The space that a SentencePiece word begins with is kept at the start too: output continues a
    prompt, so its first word is a new word.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._pieces = vocabulary.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that `token` completes."""
        return self._decoder.decode(self._pieces[token])

    def flush(self) -> str:
        """U+FFFD if the output ends inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
