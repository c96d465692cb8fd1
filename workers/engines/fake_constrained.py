"""What the fake engine writes under a constraint: valid, repeatable, and soon at an end."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from workers.engines.fake_tokens import EOS, VOCABULARY, WORDS
from workers.engines.grammar import Matcher

_LONG = 24  # tokens; from here on the output heads for its end
_CLOSERS = tuple(b'"}]')
_TEXT = frozenset(WORDS) | frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789")


class Walk:
    """Draws tokens that a grammar allows, by a hash of the prompt, the seed and the index."""

    def __init__(self, matcher: Matcher, key: bytes) -> None:
        self._matcher = matcher
        self._key = key

    def draw(self, index: int, *, but: Iterable[int]) -> int:
        """Return output token `index`; one of `but` only if nothing else is allowed.

        Raises InvalidRequestError as `Matcher.allowed` does.
        """
        mask = self._matcher.allowed(but=but)
        allowed = [token for token in range(len(VOCABULARY)) if mask[token]]
        token = self._choose(allowed, index)
        self._matcher.accept(token)
        return token

    def _choose(self, allowed: list[int], index: int) -> int:
        digest = blake2b(str(index).encode(), key=self._key, digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        long = index >= _LONG
        if EOS in allowed and (long or number % 4 == 0):
            return EOS
        closers = [closer for closer in _CLOSERS if closer in allowed]
        if closers and (long or number % 8 == 1):
            return closers[0]
        likely = [token for token in allowed if token in _TEXT] or allowed
        return likely[(number >> 8) % len(likely)]
