"""The Responses that are kept: looked up, gone on from, and never left in progress for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from queueserve.api.render_responses import ending_frame
from queueserve.api.response import failure_of
from queueserve.api.response_log import output_of
from queueserve.api.schemas.responses import ITEMS, Item
from queueserve.errors import (
    InvalidRequestError,
    QueueFullError,
    QueueServeError,
    RedisUnavailableError,
    ResponseNotFoundError,
    WorkerLostError,
)
from queueserve.queue.responses import UNENDED, ResponseStore, StoredResponse

log = logging.getLogger(__name__)

_OPENING_LOOK = 0.05  # seconds between looks whether a job is open

MAX_CHAIN = 1_000
"""Responses that one may go on from, all in a row."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a new response goes on from."""

    chain: tuple[str, ...] = ()  # ids, the first one first
    items: tuple[Item, ...] = ()  # their inputs and outputs


@dataclass(frozen=True, slots=True)
class Frame:
    """What is stored around a Response: what its request brought."""

    owner: str
    id: str
    items: list[dict[str, Any]]  # the input, as clients see it
    chain: tuple[str, ...]
    digest: str

    def around(self, response: dict[str, Any], **background: Any) -> StoredResponse:
        """Return the Response as it is stored."""
        return StoredResponse(
            id=self.id,
            status=response["status"],
            response=orjson.dumps(response).decode(),
            input=orjson.dumps(self.items).decode(),
            chain=self.chain,
            digest=self.digest,
            **background,
        )


class Responses:
    """The Responses of all tenants. Every method raises RedisUnavailableError."""

    def __init__(self, store: ResponseStore) -> None:
        self.store = store

    async def get(self, owner: str, response: str) -> StoredResponse:
        """Return a Response. Raises ResponseNotFoundError."""
        stored = await self.find(owner, response)
        if stored is None:
            raise ResponseNotFoundError(f"There is no response with the id {response!r}.")
        return stored

    async def find(self, owner: str, response: str) -> StoredResponse | None:
        """Return a Response; one whose API server has gone is failed from now on."""
        stored = await self.store.get(owner, response)
        if stored and stored.status in UNENDED and not await self.store.has_owner(stored):
            gone = WorkerLostError("The API server that ran this response has gone.")
            ended = await self.end(owner, stored, "failed", gone)
            stored = ended or await self.store.get(owner, response)
        return stored

    async def opened(self, owner: str, response: str) -> StoredResponse | None:
        """Return a Response once its job is open; None if there is none, or it was not opened."""
        while True:
            stored = await self.find(owner, response)
            if stored is None or not stored.is_opening:
                return stored
            await asyncio.sleep(_OPENING_LOOK)

    async def end(
        self, owner: str, stored: StoredResponse, status: str, error: QueueServeError | None = None
    ) -> StoredResponse | None:
        """End a Response that runs elsewhere, with what its log holds of the output so far.

        Returns it as it is then: where stored ones have too little room it may not be kept. One
        that has ended by itself at this moment is left as it is: None.
        """
        if not await self.store.close(owner, stored.id):
            return None
        events = await self.store.events(owner, stored.id)
        response = orjson.loads(stored.response) | {
            "status": status,
            "error": error and failure_of(error),
            "output": output_of(events.frames),
        }
        body, last = orjson.dumps(response).decode(), events.last + 1
        fields = {"status": status, "response": body}
        await self.store.end(owner, stored.id, last, ending_frame(last, response), fields)
        return replace(stored, status=status, response=body)

    async def earlier(self, owner: str, previous: str | None) -> Earlier:
        """Return what a response that goes on from `previous` builds on.

        Raises InvalidRequestError, ResponseNotFoundError.
        """
        if previous is None:
            return Earlier()
        try:
            last = await self.get(owner, previous)
        except ResponseNotFoundError as error:
            error.param = "previous_response_id"
            raise
        if last.status not in ("completed", "incomplete"):
            raise InvalidRequestError(
                f"The previous response is {last.status}.", param="previous_response_id"
            )
        chain = (*last.chain, last.id)
        if len(chain) > MAX_CHAIN:
            raise InvalidRequestError(
                f"At most {MAX_CHAIN} responses can be gone on from.", param="previous_response_id"
            )
        found = [*await self.store.get_all(owner, last.chain), last] if last.chain else [last]
        await self.store.touch(owner, chain)
        items: list[Item] = []
        for id_, one in zip(chain, found, strict=True):
            if one is None:
                raise ResponseNotFoundError(
                    f"The response {id_!r}, which came before, is not kept any more.",
                    param="previous_response_id",
                )
            output = orjson.loads(one.response)["output"]
            items += ITEMS.validate_python(orjson.loads(one.input) + output)
        return Earlier(chain, tuple(items))

    async def keep(self, owner: str, stored: StoredResponse) -> bool:
        """Store a Response that has ended; False, and a log entry, if that is not possible."""
        try:
            await self.store.create(owner, stored)
        except (RedisUnavailableError, InvalidRequestError, QueueFullError) as error:
            log.warning("response %s could not be stored: %s", stored.id, error.message)
            return False
        return True


def page(
    items: Sequence[dict[str, Any]], *, after: str | None, limit: int, order: str
) -> dict[str, Any]:
    """Return a page of a list, as OpenAI's lists are. Raises InvalidRequestError."""
    ordered = list(items if order == "asc" else reversed(items))
    start = 0
    if after is not None:
        start = next((i + 1 for i, item in enumerate(ordered) if item["id"] == after), -1)
        if start < 0:
            raise InvalidRequestError(f"There is no item with the id {after!r}.", param="after")
    data = ordered[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(ordered),
    }
