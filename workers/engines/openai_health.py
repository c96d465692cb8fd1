"""Whether the server behind a worker is there, and has the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import httpx

from queueserve.errors import EngineError
from workers.engines.openai_requests import read, refusal

log = logging.getLogger(__name__)

_EVERY = 2.0  # seconds
_WITHIN = 5.0  # seconds, for one answer
_PATIENCE = 2  # answers in a row that fail until the server counts as lost
_OK, _NOT_FOUND = 200, 404
_TOO_BUSY = 429


class ServerAwayError(EngineError):
    """Nobody answers, or not now."""


class Health:
    """Asks the server for its models, every few seconds."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self._client = client
        self._model = model
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._reason = ""
        self._failures = 0
        self._lock = asyncio.Lock()

    async def first(self) -> Mapping[str, Any]:
        """Wait for the server; return what it tells about the model.

        Raises EngineError if it does not have it, or refuses the key.
        """
        said = False
        while True:
            try:
                model = await self._ask()
            except ServerAwayError as error:
                if not said:
                    log.warning("waiting for the server of %s: %s", self._model, error.message)
                said = True
                await asyncio.sleep(_EVERY)
            else:
                self._up.set()
                return model

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(_EVERY)
            await self._look(_PATIENCE)

    async def is_up(self) -> bool:
        """Look now: something has failed."""
        async with self._lock:  # many fail at once, and one look is enough when it is lost
            if self._up.is_set():
                await self._look(1)
        return self._up.is_set()

    async def lost(self) -> str:
        """Wait until the server is lost; return why."""
        await self._down.wait()
        return self._reason

    async def back(self) -> None:
        """Wait until it is there."""
        await self._up.wait()

    async def _look(self, patience: int) -> None:
        try:
            await self._ask()
        except EngineError as error:
            self._failures += 1
            self._reason = error.message
            if self._failures >= patience:
                self._up.clear()
                self._down.set()
        else:
            self._failures = 0
            self._down.clear()
            self._up.set()

    async def _ask(self) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(_WITHIN):  # httpx's own is for each part of an answer
                response = await self._client.get("models", timeout=_WITHIN)
        except (httpx.HTTPError, TimeoutError) as error:
            raise ServerAwayError(f"it does not answer: {error!r}") from error
        status, answer = response.status_code, read(response.content)
        if status == _NOT_FOUND:
            return {}  # it has no such list
        if status >= _TOO_BUSY:
            raise ServerAwayError(refusal(status, answer).message)
        if response.has_redirect_location:  # not followed: it would take the key elsewhere
            raise EngineError(f"the server sends us on to {response.headers['Location']}")
        if status != _OK:
            raise EngineError(refusal(status, answer).message)  # whatever it is to a client
        if isinstance(answer, str):  # a page of something else, as while a server starts
            raise ServerAwayError("its list of models is no JSON")
        return self._listed(answer)

    def _listed(self, answer: Any) -> Mapping[str, Any]:
        known = {
            str(model.get("id")): model
            for model in _list(answer, "data")
            if isinstance(model, dict)
        }
        for model in known.values():
            known = {str(name): model for name in _list(model, "aliases")} | known
        if self._model not in known:
            names = ", ".join(known) or "none"
            raise EngineError(f"the server has no model {self._model!r}: it has {names}")
        return known[self._model]


def _list(told: Any, name: str) -> list[Any]:
    value = told.get(name) if isinstance(told, dict) else None
    return value if isinstance(value, list) else []
