"""How many requests a server runs at once, as servers of several makers tell it."""

from __future__ import annotations

import httpx
import pytest

from workers.engines.openai_slots import UNTOLD, slots_of


def server(answers):
    """A client of a server that has only these pages."""

    def handle(request):
        answer = answers.get(request.url.path)
        if answer is None:
            return httpx.Response(404, json={"detail": "Not Found"})
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    return handle


async def told(answers, owner="someone", base="http://server/v1"):
    async with httpx.AsyncClient(
        base_url=base, transport=httpx.MockTransport(server(answers))
    ) as client:
        return await slots_of(client, owner)


@pytest.mark.parametrize(
    "answers, expected",
    [
        ({"/props": {"total_slots": 6}}, 6),
        (
            {
                "/server_info": {
                    "max_running_requests": None,
                    "internal_states": [
                        {"effective_max_running_requests_per_dp": 48},
                        {"effective_max_running_requests_per_dp": 48},
                    ],
                }
            },
            96,
        ),
        ({"/info": {"max_concurrent_requests": 128}}, 128),
        ({}, UNTOLD),
    ],
)
async def test_slots_are_what_the_server_tells(answers, expected):
    assert await told(answers) == expected


async def test_a_prefix_of_the_servers_address_is_kept():
    assert await told({"/a/props": {"total_slots": 3}}, base="http://server/a/v1/") == 3


@pytest.mark.parametrize(
    "page",
    [
        {"total_slots": "many"},
        {"total_slots": 0},
        {"internal_states": [{}]},
        {"internal_states": 5},
        [1],
        httpx.Response(200, text="<html>"),
        httpx.Response(500, json={"total_slots": 7}),
    ],
)
async def test_what_cannot_be_read_is_not_told(page):
    assert await told({"/props": page, "/server_info": page}) == UNTOLD


async def test_vllm_is_not_asked():
    assert await told({"/props": {"total_slots": 6}}, owner="vllm") == 256
