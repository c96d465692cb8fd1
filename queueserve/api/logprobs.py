"""Log-probabilities as OpenAI writes them: one form in chat, another in plain completions. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from queueserve.protocol import LOWEST, Delta, Prompt, TokenLogprob


def chat_logprobs(logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return the logprobs object of a chat choice: an entry for each token."""
    return {"content": [_entry(one) for one in logprobs], "refusal": None}


def _entry(one: TokenLogprob) -> dict[str, Any]:
    own, *others = one.pieces
    tops = zip(others, (value for _, value in one.top), strict=True)
    top = [_member(piece, value) for piece, value in tops]
    return _member(own, one.logprob) | {"top_logprobs": top}


def _member(piece: bytes, value: float) -> dict[str, Any]:
    text = piece.decode(errors="replace")
    return {"token": text, "logprob": max(value, LOWEST), "bytes": list(piece)}


def text_logprobs(delta: Delta, *, base: int) -> dict[str, Any]:
    """Return the logprobs object of a completion for new output.

    `base` is what the text has before the output: with echo, the prompt's characters.
    """
    logprobs = delta.logprobs or ()
    pieces = [one.pieces[0] for one in logprobs]
    return _text_object(pieces, logprobs, _offsets(pieces, base + delta.pos))


def prompt_logprobs(prompt: Prompt, text: str) -> dict[str, Any]:
    """Return the logprobs object of a completion for its prompt, which reads `text`."""
    return _text_object(prompt.pieces, prompt.logprobs or (), _places(prompt.pieces, text))


def _text_object(
    pieces: Sequence[bytes], logprobs: Sequence[TokenLogprob | None], offsets: list[int]
) -> dict[str, Any]:
    return {
        "tokens": [_name(piece) for piece in pieces],
        "token_logprobs": [one and max(one.logprob, LOWEST) for one in logprobs],
        "top_logprobs": [one and _by_name(one) for one in logprobs],
        "text_offset": offsets,
    }


def _by_name(one: TokenLogprob) -> dict[str, float]:
    values = chain((value for _, value in one.top), (one.logprob,))
    own, *others = one.pieces
    names = map(_name, (*others, own))
    return {name: max(value, LOWEST) for name, value in zip(names, values, strict=True)}


def _name(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:  # as OpenAI names a token that is part of a character
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _offsets(pieces: Iterable[bytes], start: int) -> list[int]:
    """Where each piece begins; those of one character begin where it does."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    for piece in pieces:
        offsets.append(start)
        start += len(decoder.decode(piece))
    return offsets


def _places(pieces: Iterable[bytes], text: str) -> list[int]:
    """Where in `text` each piece begins; special tokens, which it does not show, take no room."""
    data, at = text.encode(), 0
    offsets = []
    for piece in pieces:
        offsets.append(len(data[:at].decode(errors="ignore")))
        seen = piece if data.startswith(piece, at) else piece.removeprefix(b" ")
        if data.startswith(seen, at):
            at += len(seen)
    return offsets


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return several logprobs objects as one; None for none."""
    if not parts:
        return None
    return {
        name: None if own is None else [*chain.from_iterable(part[name] for part in parts)]
        for name, own in parts[0].items()
    }
