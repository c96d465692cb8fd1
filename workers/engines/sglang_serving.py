"""The requests of an Engine of SGLang, in SGLang's thread."""

from __future__ import annotations

import asyncio
import math
import uuid
from array import array
from collections.abc import Callable, Coroutine
from collections.abc import Sequence as Many
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

from sglang.srt.managers.io_struct import EmbeddingReqInput

from queueserve.errors import EngineError, InvalidRequestError, QueueServeError
from workers.engines.base import Output, Sequence
from workers.engines.room import tokens_left
from workers.engines.sglang_loading import Loaded
from workers.engines.sglang_requests import check, output, parameters, refusal

_ENDS_WITHIN = 5.0  # seconds, what runs in the event loop when it is stopped

T = TypeVar("T")
Step: TypeAlias = Callable[[list[tuple[Sequence, Output]]], None]


class Serving:
    """The requests of one engine. `step` is called once for all that a step of SGLang gave."""

    def __init__(self, loaded: Loaded, step: Step) -> None:
        self._loaded = loaded
        self._llm = loaded.llm
        self.loop: asyncio.AbstractEventLoop = loaded.llm.loop  # SGLang makes it for its thread
        self.dimensions = loaded.dimensions
        self._step = step
        self._given: list[tuple[Sequence, Output]] = []

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in SGLang's thread; may be called in any."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def generate(self, sequence: Sequence) -> None:
        """Run a sequence to its end; SGLang drops it when this is cancelled."""
        try:
            self._check_tokens((*sequence.prompt, *sequence.generated), param="prompt")
            left = tokens_left(sequence, self._loaded.info.context_length)
            if left <= 0:
                self._give(sequence, Output(sequence.id, finish="length"))
                return
            await self._check(sequence)
            await self._run(sequence, parameters(sequence, left=left, ends=self._loaded.ends))
        except QueueServeError as error:
            self._give(sequence, Output(sequence.id, error=error))
        except Exception as error:  # noqa: BLE001  # SGLang raises what it likes
            self._give(sequence, Output(sequence.id, error=refusal(sequence, error)))

    async def _check(self, sequence: Sequence) -> None:
        """Raise what speaks against a sequence, which SGLang would not always say.

        A constraint that SGLang's own trial takes may keep a sequence from ever ending.
        """
        if sequence.constraint is not None:
            await asyncio.to_thread(
                self._loaded.grammars.matcher, sequence.constraint, sequence.generated
            )
        check(sequence, seeds_count=self._loaded.seeds_count)

    async def _run(self, sequence: Sequence, params: dict[str, Any]) -> None:
        # SGLang aborts all requests whose ids begin with the given one: none does with ours.
        name = uuid.uuid4().hex
        first, ended = True, False
        try:
            async with aclosing(await self._stream(sequence, params, name)) as stream:
                async for chunk in stream:
                    given = output(sequence, chunk, first=first)
                    first, ended = False, given.finish is not None or given.error is not None
                    self._give(sequence, given)
        finally:
            if not ended:
                self._llm.tokenizer_manager.abort_request(rid=name)
        if not ended:
            raise EngineError("SGLang broke the sequence off without saying why")

    async def _stream(self, sequence: Sequence, params: dict[str, Any], name: str) -> Any:
        asked = sequence.sampling.logprobs
        return await self._llm.async_generate(
            input_ids=[*sequence.prompt, *sequence.generated],
            sampling_params=params,
            stream=True,
            return_logprob=asked is not None,
            top_logprobs_num=asked or 0,
            lora_path=sequence.adapter,
            rid=name,
            priority=sequence.priority,
        )

    def _check_tokens(self, tokens: Many[int], *, param: str) -> None:
        """Refuse what would end SGLang's scheduler, and with it this worker."""
        unknown = next(
            (token for token in tokens if not 0 <= token < self._loaded.vocabulary), None
        )
        if unknown is not None:
            raise InvalidRequestError(f"the model has no token {unknown}", param=param)

    def _give(self, sequence: Sequence, given: Output) -> None:
        """Collect what the requests' tasks say in one turn of the event loop, which is one step."""
        if not self._given:
            asyncio.get_running_loop().call_soon(self._flush)
        self._given.append((sequence, given))

    def _flush(self) -> None:
        given, self._given = self._given, []
        self._step(given)

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """A float32 vector of length 1 for each input.

        Raises EngineError, and InvalidRequestError for a token that the model does not have.
        """
        for tokens in inputs:
            self._check_tokens(tokens, param="input")
        try:
            return list(await asyncio.gather(*map(self._vector, inputs)))
        except Exception as error:  # SGLang raises what it likes
            raise EngineError(f"SGLang could not embed: {error}") from error

    async def _vector(self, tokens: tuple[int, ...]) -> array[float]:
        request = EmbeddingReqInput(input_ids=list(tokens))
        async for given in self._llm.tokenizer_manager.generate_request(request, None):
            vector = given["embedding"]
            length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
            return array("f", [value / length for value in vector])
        raise EngineError("SGLang gave no vector")

    def run(self) -> None:
        """Be SGLang's event loop until `stop`, then end its processes, which this waits for."""
        self.loop.run_forever()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.wait(pending, timeout=_ENDS_WITHIN))
        self._llm.shutdown()

    def stop(self) -> None:
        """Have `run` come to its end; may be called in any thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
