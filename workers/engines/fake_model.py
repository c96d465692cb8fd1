"""The fake engine's model: a function of the prompt, the seed and the index of a token."""

from __future__ import annotations

import math
from hashlib import blake2b

from queueserve.protocol import Sampling, TokenLogprob
from workers.engines.fake_tokens import EOS, UNITS, VOCABULARY, WORDS

_BLOCK = 8  # tokens that one hash decides; characters never cross a block

# The logits of the most likely tokens at every index; any other token's is 0.
LOGITS = tuple(12.0 - 0.5 * rank for rank in range(20))
NORM = math.log(sum(map(math.exp, LOGITS)) + len(VOCABULARY) - len(LOGITS))


class Model:
    """The tokens that follow one prompt: the most likely ones, or with a seed the drawn ones."""

    def __init__(self, prompt: tuple[int, ...], sampling: Sampling, seed: int | None) -> None:
        text = f"{seed}:{','.join(map(str, prompt))}"
        self.key = blake2b(text.encode(), digest_size=32).digest()
        end = _BLOCK * (2 + self.key[0] % 7)  # an answer has 16 to 64 tokens
        self._end = math.inf if sampling.ignore_eos else max(end, sampling.min_tokens)
        self._number = -1
        self._tokens: list[int] = []
        self._salt = b""

    def likely(self, index: int) -> list[int]:
        """Return the tokens of `LOGITS` at this index, most likely first."""
        best = self.best(index)
        start = self._salt[index % _BLOCK]
        around = (WORDS[(start + step) % len(WORDS)] for step in range(len(LOGITS)))
        return [best, *(token for token in around if token != best)][: len(LOGITS)]

    def logprob(self, index: int, token: int, *, top: int) -> TokenLogprob:
        """Return how likely `token` is at this index, and the `top` most likely ones."""
        ranked = [
            (one, logit - NORM) for one, logit in zip(self.likely(index), LOGITS, strict=True)
        ]
        return TokenLogprob(dict(ranked).get(token, -NORM), tuple(ranked[:top]))

    def best(self, index: int) -> int:
        """Return the most likely token at this index."""
        number, at = divmod(index, _BLOCK)
        if number != self._number:
            self._fill(number)
        return EOS if index >= self._end else self._tokens[at]

    def _fill(self, number: int) -> None:
        digest = blake2b(str(number).encode(), key=self.key, digest_size=2 * _BLOCK).digest()
        tokens: list[int] = []
        for byte in digest[:_BLOCK]:
            unit = UNITS[byte % len(UNITS)]
            room = _BLOCK - len(tokens)
            tokens += unit if len(unit) <= room else (WORDS[byte % len(WORDS)],) * bool(room)
        self._number, self._tokens, self._salt = number, tokens, digest[_BLOCK:]
