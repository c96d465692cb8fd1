"""An engine under test, and a recorder of what it gives."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time

from queueserve.protocol import Sampling
from workers.engines.base import EngineDiedError, Fallible, Sequence

LOADED = 270.0  # seconds until a model is there: vLLM takes one minute, on a busy machine four
BOUND = 250.0  # seconds that anything may take before it counts as hung
_OF_SEQUENCES = {"constraint", "adapter", "priority"}


@dataclasses.dataclass(frozen=True)
class Result:
    """All that one sequence gave."""

    tokens: tuple[int, ...]
    logprobs: list
    finish: str | None
    error: Exception | None
    cached_tokens: int | None
    prompt_logprobs: tuple | None


@dataclasses.dataclass
class Gap:
    """Seconds that the event loop stood still at most, of how many in all."""

    longest: float = 0.0
    whole: float = 0.0

    def is_short(self, seconds):
        """Whether it is below; on a machine on which everything takes long, a small part of it.

        Never as long as a lease, which a heartbeat must renew.
        """
        return 0 < self.longest < min(max(seconds, self.whole / 4), 10)


@contextlib.asynccontextmanager
async def longest_gap():
    """Measures how long the event loop runs nothing else at a time."""
    gap, began = Gap(), time.monotonic()

    async def watch():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            gap.longest, last = max(gap.longest, time.monotonic() - last), time.monotonic()

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield gap
        await asyncio.sleep(0.01)
    finally:
        gap.whole = time.monotonic() - began
        watching.cancel()


class Run:
    """A started engine and what it gives; every sequence gets a name of its own."""

    def __init__(self, engine):
        self.engine = engine
        self.calls = []  # the outputs of each call of the sink
        self._ids = itertools.count()
        self._moved = asyncio.Event()

    async def start(self):
        async with longest_gap() as self.gap_while_loading:
            await asyncio.wait_for(self.engine.start(self._sink), LOADED)
        return self

    def _sink(self, outputs):
        self.calls.append(list(outputs))
        self._moved.set()

    def add(self, prompt, generated=(), *, id=None, **given):  # noqa: A002
        """`given`: a constraint, an adapter, a priority; all else is sampling."""
        name = id or f"sequence-{next(self._ids)}"
        others = {part: given.pop(part) for part in _OF_SEQUENCES & given.keys()}
        self.engine.add(
            Sequence(
                id=name,
                prompt=tuple(prompt),
                generated=tuple(generated),
                sampling=Sampling(**({"temperature": 0.0} | given)),
                **others,
            )
        )
        return name

    def outputs(self, name):
        return [output for call in self.calls for output in call if output.id == name]

    def tokens(self, name):
        return [token for output in self.outputs(name) for token in output.tokens]

    def ended(self, name):
        return any(output.finish or output.error for output in self.outputs(name))

    async def until(self, condition):
        """Wait until it holds; it is asked after every call of the sink.

        Raises EngineDiedError at once, with the engine's reason, if it cannot hold any more.
        """
        async with asyncio.timeout(BOUND), self._death() as died:
            while not condition():
                self._moved.clear()
                if died.done():
                    raise died.exception()
                await self._moved.wait()

    @contextlib.asynccontextmanager
    async def _death(self):
        """A future that has an exception when the engine is lost for good."""
        died = asyncio.get_running_loop().create_future()

        async def watch():
            try:
                while isinstance(self.engine, Fallible):
                    await self.engine.lost()
                    await self.engine.back()
            except EngineDiedError as error:
                died.set_exception(error)
                self._moved.set()

        watching = asyncio.create_task(watch())
        try:
            yield died
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            if died.done():
                died.exception()  # it was looked at: the outputs that came before decide

    async def end(self, name):
        await self.until(lambda: self.ended(name))
        outputs = self.outputs(name)
        return Result(
            tokens=tuple(self.tokens(name)),
            logprobs=[one for output in outputs for one in output.logprobs or ()],
            finish=outputs[-1].finish,
            error=outputs[-1].error,
            cached_tokens=outputs[0].cached_tokens,
            prompt_logprobs=outputs[0].prompt_logprobs,
        )

    async def gap_while(self, prompt):
        """How long the event loop stood still while the prompt was read."""
        async with longest_gap() as gap:
            await self.generate(prompt, max_tokens=2, ignore_eos=True)
        return gap

    async def generate(self, prompt, generated=(), **sampling):
        return await self.end(self.add(prompt, generated, **sampling))

    async def encode(self, text):
        return await self.engine.tokenizer.encode(text, add_special=False)

    def text(self, tokens):
        detokenizer = self.engine.tokenizer.detokenizer()
        return "".join(map(detokenizer.feed, tokens)) + detokenizer.flush()
