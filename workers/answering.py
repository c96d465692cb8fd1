"""Jobs that answer with data: vectors, scores, token ids and texts."""

from __future__ import annotations

import asyncio
import base64
import math
from array import array
from collections.abc import Callable, Iterable
from operator import mul

from msgspec.structs import replace

from queueserve.encoding import encode
from queueserve.errors import ContextLengthExceededError, EngineError, InvalidRequestError
from queueserve.protocol import Answer, Answered, Event, Inputs, Job, Started
from queueserve.queue.consumer import RESULT_KEPT, Assignment, Finish
from workers.engines.base import Engine
from workers.engines.pooling import Embedder, Pair, Scorer
from workers.prompting import Prompter

ANSWER_KEPT = 30.0
"""Seconds. Answers are large, and a reader that has missed one asks after three."""
_INLINE = 1000  # tokens that become text in a few milliseconds; more are a thread's work


class Answerer:
    """Answers the jobs of one engine; with `truncate` it cuts what is too long, if not told."""

    def __init__(self, engine: Engine, prompter: Prompter, *, truncate: bool = False) -> None:
        self._engine = engine
        self._prompter = prompter
        self._truncate = truncate
        self._frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    async def run(
        self, assignment: Assignment, worker: str, publish: Callable[[Event], None]
    ) -> Finish:
        """Run a job that has inputs, and publish what its reader hears of it; return its end.

        Raises InvalidRequestError, EngineError.
        """
        job, epoch = assignment.job, assignment.epoch
        assert job.inputs is not None  # noqa: S101 - what brought it here
        fingerprint = self._engine.info.fingerprint
        publish(Started(job.id, epoch, 0, 0, 0, "", fingerprint, worker))
        answer = await self.answer(job, job.inputs)
        publish(Answered(job.id, epoch, answer.rows, answer.prompt_tokens))
        keep = RESULT_KEPT if job.grace else ANSWER_KEPT
        return Finish(job.id, epoch, "done", encode(answer), answer.prompt_tokens, keep)

    async def answer(self, job: Job, inputs: Inputs) -> Answer:
        """Return a row for each item, as `protocol.Answered` describes them.

        Raises InvalidRequestError, EngineError.
        """
        match job.kind:
            case "tokenize":
                return await self._tokenize(job, inputs)
            case "detokenize":
                return Answer(tuple([await self._text(item) for item in inputs.items]), 0)
            case "embed":
                return await self._embed(inputs)
            case _:
                return await self._score(inputs)

    # The tokenizer alone

    async def _tokenize(self, job: Job, inputs: Inputs) -> Answer:
        if job.messages:
            rows = [await self._prompter.encode(replace(job, kind="chat"))]
        else:
            rows = [await self._encode(item, special=inputs.add_special) for item in inputs.items]
        return Answer(tuple(rows), sum(map(len, rows)))

    async def _text(self, tokens: str | tuple[int, ...]) -> str:
        if isinstance(tokens, str):
            raise InvalidRequestError("tokens must be token ids", param="tokens")
        if len(tokens) <= _INLINE:
            return self._decode(tokens)
        return await asyncio.to_thread(self._decode, tokens)

    def _decode(self, tokens: tuple[int, ...]) -> str:
        detokenizer = self._engine.tokenizer.detokenizer()
        try:
            return "".join(map(detokenizer.feed, tokens)) + detokenizer.flush()
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                "tokens: a token id that this model does not have", param="tokens"
            ) from error

    async def _encode(self, item: str | tuple[int, ...], *, special: bool) -> tuple[int, ...]:
        if not isinstance(item, str):
            return item
        await asyncio.sleep(0)  # a batch of long texts must not hold up the event loop
        return await self._engine.tokenizer.encode(item, add_special=special)

    # Vectors

    async def _embed(self, inputs: Inputs) -> Answer:
        embedder = self._engine
        assert isinstance(embedder, Embedder)  # noqa: S101 - its tasks say so
        size = inputs.dimensions or embedder.dimensions
        if size > embedder.dimensions:
            raise InvalidRequestError(
                f"this model's vectors have {embedder.dimensions} dimensions, not {size}",
                param="dimensions",
            )
        tokens = await self._ids(inputs)
        vectors = await embedder.embed(tokens)
        if size < embedder.dimensions:
            vectors = [_shortened(vector, size) for vector in vectors]
        _check(map(sum, vectors))
        rows = tuple(base64.b64encode(vector).decode() for vector in vectors)
        return Answer(rows, sum(map(len, tokens)))

    async def _ids(self, inputs: Inputs) -> list[tuple[int, ...]]:
        return [
            self._fitted(await self._cut(item, inputs), inputs, at)
            for at, item in enumerate(inputs.items)
        ]

    async def _cut(self, item: str | tuple[int, ...], inputs: Inputs) -> tuple[int, ...]:
        """Return the tokens that are kept; a text keeps its special tokens at both ends."""
        tokens, keep = await self._encode(item, special=True), self._kept(inputs)
        if keep is None or len(tokens) <= keep:
            return tokens
        if not isinstance(item, str):
            return tokens[:keep]
        before, after = await self._specials()
        inner = tokens[len(before) : len(tokens) - len(after)]
        room = keep - len(before) - len(after)
        return (*before, *inner[:room], *after) if room > 0 else tokens[:keep]

    def _kept(self, inputs: Inputs) -> int | None:
        if inputs.truncate is None:
            return self._engine.info.context_length if self._truncate else None
        return self._engine.info.context_length if inputs.truncate < 0 else inputs.truncate

    async def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens that the tokenizer puts before and after a text."""
        if self._frame is None:
            plain = await self._engine.tokenizer.encode("a", add_special=False)
            full = await self._engine.tokenizer.encode("a", add_special=True)
            places = range(len(full) - len(plain) + 1)
            at = next((at for at in places if full[at : at + len(plain)] == plain), 0)
            self._frame = full[:at], full[at + len(plain) :]
        return self._frame

    def _fitted(self, tokens: tuple[int, ...], inputs: Inputs, at: int) -> tuple[int, ...]:
        limit, where = self._engine.info.context_length, f"{inputs.param}[{inputs.first + at}]"
        if not tokens:
            raise InvalidRequestError(f"{where} is empty", param=inputs.param)
        if len(tokens) > limit:
            raise ContextLengthExceededError(
                f"This model's maximum input length is {limit} tokens, but {where} has "
                f"{len(tokens)}; with truncate_prompt_tokens it is cut.",
                param=inputs.param,
            )
        return tokens

    # Scores

    async def _score(self, inputs: Inputs) -> Answer:
        queries = inputs.queries * len(inputs.items) if len(inputs.queries) == 1 else inputs.queries
        texts = [(query, str(text)) for query, text in zip(queries, inputs.items, strict=True)]
        if isinstance(self._engine, Scorer):
            return await self._cross(self._engine, texts, inputs)
        assert isinstance(self._engine, Embedder)  # noqa: S101 - its tasks say so
        return await self._cosines(self._engine, texts, inputs)

    async def _cross(self, scorer: Scorer, texts: list[tuple[str, str]], inputs: Inputs) -> Answer:
        keep, pairs = self._kept(inputs), list[Pair]()
        for at, (query, text) in enumerate(texts):
            await asyncio.sleep(0)
            pair = await scorer.pair(query, text, limit=keep)
            self._fitted(pair.tokens, inputs, at)
            pairs.append(pair)
        scores = await scorer.score(pairs)
        _check(scores)
        return Answer(tuple(scores), sum(len(pair.tokens) for pair in pairs))

    async def _cosines(
        self, embedder: Embedder, texts: list[tuple[str, str]], inputs: Inputs
    ) -> Answer:
        unique = list(dict.fromkeys(text for pair in texts for text in pair))
        tokens = await self._ids(replace(inputs, items=tuple(unique)))
        vectors = dict(zip(unique, await embedder.embed(tokens), strict=True))
        scores = [sum(map(mul, vectors[one], vectors[other])) for one, other in texts]
        _check(scores)
        return Answer(tuple(scores), sum(map(len, tokens)))


def _check(numbers: Iterable[float]) -> None:
    """Raise EngineError for what JSON has no number for: half precision may be too little."""
    if not all(map(math.isfinite, numbers)):
        raise EngineError("The model's answer is no number: it was computed with too few bits.")


def _shortened(vector: array[float], size: int) -> array[float]:
    """Return the first `size` numbers, scaled to length 1, as Matryoshka models are meant."""
    head = vector[:size]
    length = math.sqrt(sum(map(mul, head, head)))
    return array("f", [number / length for number in head]) if length else head
