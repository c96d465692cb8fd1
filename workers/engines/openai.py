"""Any server that speaks the OpenAI API as an engine: it gets the jobs as they are.

The server renders, samples and batches; its health is our registration. A piece of text stands for
a token, with its index for an id, as the server tells no ids. So an answer that has begun cannot be
continued elsewhere: it ends with an error, and one that has sent nothing starts over.

It has been run before llama.cpp's server, vLLM's and QueueServe's own API, not before others.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import httpx
import orjson

from queueserve.errors import EngineError, QueueServeError, WorkerLostError
from queueserve.protocol import FinishReason
from queueserve.queue.tasks import Tasks
from workers.engines.base import EngineInfo, Output, Sequence, Sink
from workers.engines.openai_answer import DIALECT, Answer, EventReader
from workers.engines.openai_health import Health
from workers.engines.openai_requests import read, refusal, request_of
from workers.engines.openai_slots import slots_of

log = logging.getLogger(__name__)

_CONNECT = 10.0  # seconds; so long an answer may wait for a connection, too
_TRIES = 3  # of a request that brings nothing, as on a connection that the server has just closed
_LINGER = 2.0  # seconds for what comes after the finish, and then for the connection to end
_MAX_ERROR = 64 * 1024  # bytes of a refusal that are read
_OK = 200


class _Pieces:
    """The text of the tokens that are given out at the moment."""

    def __init__(self) -> None:
        self.texts: Mapping[int, str] = {}

    def feed(self, token: int) -> str:
        return self.texts.get(token, "")

    def flush(self) -> str:
        return ""


class RelayTokenizer:
    """Stands for the tokenizer, which the server keeps."""

    chat_template: str | None = DIALECT
    special_tokens: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.pieces = _Pieces()

    async def encode(self, text: str, *, add_special: bool) -> tuple[int, ...]:  # noqa: ARG002
        """Return nothing: no token is known."""
        return ()

    def detokenizer(self) -> _Pieces:
        """Return the one for all: a token's text is there only while it is given out."""
        return self.pieces

    def piece(self, token: int) -> bytes:  # noqa: ARG002
        """Return nothing."""
        return b""


class OpenAIEngine:
    """A model of the server at `api_base`, which is as the openai package takes it.

    `slots` and `context_length` are for a server that does not tell them.
    """

    def __init__(
        self,
        model: str,
        *,
        api_base: str,
        api_key: str | None = None,
        slots: int | None = None,
        context_length: int | None = None,
    ) -> None:
        self.tokenizer = RelayTokenizer()
        self.steps = 0
        self._model = model
        self._slots = slots
        self._context_length = context_length
        self._client = httpx.AsyncClient(
            base_url=api_base,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(),  # none: the slots bound them
            timeout=_CONNECT,
        )
        self._health = Health(self._client, model)
        self._tasks = Tasks()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def start(self, sink: Sink) -> None:
        """Wait for the server. Raises EngineError if it does not have the model."""
        self._sink = sink
        told = await self._health.first()
        meta = told.get("meta") or {}  # of llama.cpp
        length = self._context_length or told.get("max_model_len") or meta.get("n_ctx")
        if not isinstance(length, int):
            raise EngineError(
                f"the server does not tell the context length of {self._model}: "
                "give it with --context-length"
            )
        self._owner = str(told.get("owned_by") or "server")
        where = f"{self._client.base_url.host}:{self._client.base_url.port} {self._model}"
        self.info = EngineInfo(
            engine="openai",
            version=self._owner,
            fingerprint=hashlib.blake2b(where.encode(), digest_size=8).hexdigest(),
            context_length=length,
            slots=self._slots or await slots_of(self._client, self._owner),
            relays=True,
            images=True,  # the server refuses them if its model sees none
        )
        self._tasks.start(self._health.watch(), f"health of {self._model}")

    def add(self, sequence: Sequence) -> None:
        """Pass a job on."""
        self.abort(sequence.id)
        task = self._tasks.start(self._run(sequence), f"relay {sequence.id}")
        self._running[sequence.id] = task

    def abort(self, sequence_id: str) -> None:
        """Close the connection: that is how a server is told."""
        if task := self._running.pop(sequence_id, None):
            task.cancel()

    async def lost(self) -> str:
        """Wait until the server is lost; it may come back, so this never raises."""
        return await self._health.lost()

    async def back(self) -> None:
        """Wait until the server is there."""
        await self._health.back()

    async def close(self) -> None:
        """Close all connections."""
        await self._tasks.aclose()
        await self._client.aclose()

    # One job

    async def _run(self, sequence: Sequence) -> None:
        error: QueueServeError | None
        try:
            error = await self._answered(sequence)
        except QueueServeError as refused:
            error = refused
        except Exception:
            log.exception("job %s could not be relayed", sequence.id)
            error = EngineError("The answer of the server of this model could not be read.")
        if error is not None and self._is_ours(sequence.id):
            del self._running[sequence.id]
            self._sink([Output(sequence.id, error=error)])

    def _is_ours(self, sequence_id: str) -> bool:
        return self._running.get(sequence_id) is asyncio.current_task()

    async def _answered(self, sequence: Sequence) -> QueueServeError | None:
        """Relay a job to its end; return what ended it otherwise.

        None, too, when the server is lost: then the worker gives the job back.
        """
        job = sequence.job
        if job is None or sequence.generated:
            raise WorkerLostError("The server of this model cannot continue an answer.")
        path, body = request_of(job, model=self._model, owner=self._owner)
        for _ in range(_TRIES):
            answer = Answer(job)
            try:
                await self._relay(sequence.id, path, body, answer, timeout=job.timeout)
            except httpx.HTTPError as error:
                if not self._is_ours(sequence.id):
                    return None  # it has ended, and only the connection broke afterwards
                log.warning("job %s: %r", job.id, error, extra={"sparse": True})
                if not await self._health.is_up():
                    return None
                if answer.count:
                    return EngineError("The server of this model broke off in mid-answer.")
            else:
                return None
        return EngineError("The server of this model does not answer.")

    async def _relay(
        self, sequence_id: str, path: str, body: dict[str, Any], answer: Answer, *, timeout: float
    ) -> None:
        async with self._client.stream(
            "POST",
            path,
            content=orjson.dumps(body),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(_CONNECT, read=timeout),  # the job ends before that
        ) as response:
            if response.status_code != _OK:
                raise refusal(response.status_code, read(await _body(response)))
            stream = response.aiter_bytes()
            with contextlib.suppress(TimeoutError):
                await self._read(sequence_id, stream, answer)
            self._end(sequence_id, answer)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER):
                    async for _ in stream:  # read to its end, the connection can be used again
                        pass

    async def _read(self, sequence_id: str, stream: AsyncIterator[bytes], answer: Answer) -> None:
        """Give out an answer to its end. Raises TimeoutError when its finish was not the last."""
        reader = EventReader()
        async with asyncio.timeout(None) as patience:
            async for data in stream:
                self._take(sequence_id, answer, reader.feed(data))
                if reader.done:
                    return
                if answer.finish is not None and patience.when() is None:
                    # Its usage may follow; some servers neither say that nothing does, nor close.
                    patience.reschedule(asyncio.get_running_loop().time() + _LINGER)
            whole = reader.end()
            self._take(sequence_id, answer, whole)
            if whole and answer.finish is None:
                raise EngineError("The server of this model sent something that is no answer.")

    def _take(self, sequence_id: str, answer: Answer, events: Iterable[Mapping[str, Any]]) -> None:
        at = answer.count
        if pieces := [piece for event in events for piece in answer.take(event)]:
            self._give(sequence_id, at, pieces)

    def _end(self, sequence_id: str, answer: Answer) -> None:
        if answer.finish is None:
            raise httpx.RemoteProtocolError("the answer ended without a finish_reason")
        if not self._is_ours(sequence_id):
            return  # a stop string was hit, or nobody wants it any more
        closing = answer.end(most=self.info.context_length)
        del self._running[sequence_id]  # not before: what `end` raises must still be told
        self._give(
            sequence_id,
            answer.count,
            closing,
            finish=answer.finish,
            prompt_tokens=answer.prompt_tokens,
        )

    def _give(
        self,
        sequence_id: str,
        at: int,
        pieces: list[str],
        *,
        finish: FinishReason | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        tokens = tuple(range(at, at + len(pieces)))
        self.steps += 1
        self.tokenizer.pieces.texts = dict(zip(tokens, pieces, strict=True))
        self._sink([Output(sequence_id, tokens, finish=finish, prompt_tokens=prompt_tokens)])


async def _body(response: httpx.Response) -> bytes:
    """Return what a refusal says, or the beginning of it."""
    body = b""
    async for data in response.aiter_bytes():
        body += data
        if len(body) > _MAX_ERROR:
            break
    return body[:_MAX_ERROR]
