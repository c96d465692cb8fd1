"""How many requests the server behind a worker runs at once, where it tells.

llama.cpp tells it in /props (`total_slots`), SGLang in /server_info (the sum over `internal_states`
of `effective_max_running_requests_per_dp`), TGI in /info (`max_concurrent_requests`). vLLM tells
nobody; 256 is the smallest max-num-seqs that its server has on a GPU by default.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import httpx

log = logging.getLogger(__name__)

UNTOLD = 32
"""Slots of a server that does not tell, and is not vLLM."""
_VLLM = 256
_WITHIN = 5.0  # seconds, for one answer
_OK = 200


async def slots_of(client: httpx.AsyncClient, owner: str) -> int:
    """Return what the server tells, else a default; `owner` is who its list of models names.

    Never raises: a server that does not answer now has its default.
    """
    if owner == "vllm":
        return _VLLM
    root = client.base_url.copy_with(
        path=client.base_url.path.rstrip("/").removesuffix("/v1") + "/"
    )
    for path in ("props", "server_info", "info"):
        if told := _slots(await _ask(client, root.join(path))):
            return told
    return UNTOLD


def _slots(told: Mapping[str, Any]) -> int | None:
    states = told.get("internal_states")
    each = [
        state.get("effective_max_running_requests_per_dp")
        for state in (states if isinstance(states, list) else ())
        if isinstance(state, dict)
    ]
    for slots in (told.get("total_slots"), _sum(each), told.get("max_concurrent_requests")):
        if isinstance(slots, int) and slots > 0:
            return slots
    return None


def _sum(each: list[Any]) -> int | None:
    return sum(each) if each and all(isinstance(one, int) for one in each) else None


async def _ask(client: httpx.AsyncClient, url: httpx.URL) -> Mapping[str, Any]:
    try:
        response = await client.get(url, timeout=_WITHIN)
        answer = response.json() if response.status_code == _OK else None
    except (httpx.HTTPError, ValueError) as error:
        log.debug("%s: %r", url, error)
        answer = None
    return answer if isinstance(answer, dict) else {}
