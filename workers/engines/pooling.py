"""What an engine may offer besides generating, or instead of it: vectors, and scores of pairs.

Small optional capabilities: an engine that has one names it in `EngineInfo.tasks`. Awaiting is all
there is to it; an engine drops what nobody awaits any more, and batches what is awaited together.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from queueserve.errors import InvalidRequestError
from workers.engines.base import Output, Sequence, Sink


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts as one input of a cross-encoder."""

    tokens: tuple[int, ...]
    types: tuple[int, ...]  # of each token: 0 in the first text, 1 in the second


@runtime_checkable
class Embedder(Protocol):
    """An engine with the task "embed"; it can also score, by the cosine of two vectors."""

    @property
    def dimensions(self) -> int:
        """The length of a vector."""

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Return a float32 vector (typecode "f") for each input, all of length 1.

        An input has at least one token and at most `EngineInfo.context_length`. Raises EngineError.
        """


@runtime_checkable
class Scorer(Protocol):
    """An engine that reads two texts together and says how well they match: a cross-encoder."""

    async def pair(self, query: str, text: str, *, limit: int | None) -> Pair:
        """Return the two texts as an input, cut to `limit` tokens where they are longer.

        The longer one is cut first. Must not block the event loop.
        """

    async def score(self, pairs: list[Pair]) -> list[float]:
        """Return a score for each pair; more is a better match. Raises EngineError."""


class GeneratesNothing:
    """The half of `workers.engines.base.Engine` that generates, of an engine that only pools."""

    _sink: Sink  # from start on

    def add(self, sequence: Sequence) -> None:
        """Satisfies `workers.engines.base.Engine`: every sequence ends in an error."""
        problem = InvalidRequestError("this model generates no text", param="model")
        output = Output(sequence.id, error=problem)
        asyncio.get_running_loop().call_soon(self._sink, [output])

    def abort(self, sequence_id: str) -> None:
        """Satisfies `workers.engines.base.Engine`: there are no sequences."""
