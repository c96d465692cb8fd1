"""The short way to the routes that generate, and the long one through FastAPI, answer alike."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from opentelemetry import trace

from queueserve.api.app import create_app
from queueserve.settings import ApiSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHORT, LONG = "application/json", "application/problem+json"
"""FastAPI takes both for JSON; only the first one goes the short way."""

BAD = [
    b"",
    b"{",
    b"[]",
    b"5",
    b'"text"',
    b"null",
    b"{}",
    b'{"model": "m"}',
    b'{"model": "m", "messages": [{"role": "user", "content": 5}], "prompt": 5}',
    b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "n": 0}',
    b'{"model": "who", "messages": [{"role": "user", "content": "a"}], "prompt": "a"}',
    b"x" * 100_001,
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: body[:20].decode())
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_errors_are_the_same(http, path, body):
    short = await http.post(path, content=body, headers={"content-type": SHORT})
    long = await http.post(path, content=body, headers={"content-type": LONG})
    assert short.status_code == long.status_code >= 400
    assert short.json() == long.json()


@pytest.mark.parametrize("content_type", [SHORT, f"{SHORT}; charset=utf-8", LONG])
async def test_both_ways_lead_to_the_same_function(http, hand, content_type):
    body = b'{"model": "m", "prompt": "a"}'
    asked = asyncio.create_task(
        http.post(COMPLETIONS, content=body, headers={"content-type": content_type})
    )
    await hand.opened()
    hand.start()
    hand.finish(text="done")
    assert (await asked).json()["choices"][0]["text"] == "done"


@pytest.mark.parametrize("content_type", [SHORT, LONG])
async def test_what_nobody_expected_is_a_500_on_both_ways(http, hand, content_type):
    hand.refusals.append(ValueError("a defect"))
    body = b'{"model": "m", "prompt": "a"}'
    answer = await http.post(COMPLETIONS, content=body, headers={"content-type": content_type})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"


class Traced(trace.TracerProvider):
    """An OpenTelemetry that keeps the spans it is asked for."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def get_tracer(self, *_, **__):
        return self

    def start_span(self, name, **_):
        self.spans.append(Span(name))
        return self.spans[-1]

    def start_as_current_span(self, *_, **__):
        return contextlib.nullcontext(Span(""))


class Span(trace.NonRecordingSpan):
    def __init__(self, name: str) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name = name

    def update_name(self, name: str) -> None:
        self.name = name


async def test_where_opentelemetry_is_set_up_a_request_has_its_span(hand, open_app, monkeypatch):
    provider = Traced()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    async with open_app(ApiSettings(), hand.plane) as client:
        await client.post(CHAT, content=b"{}", headers={"content-type": SHORT})
    assert [span.name for span in provider.spans] == [f"POST {CHAT}"]


async def test_where_opentelemetrys_package_surrounds_fastapi_a_request_goes_through_it(hand):
    app = create_app(ApiSettings(), open_plane=hand.plane)
    app._is_instrumented_by_opentelemetry = True
    seen = []

    def surrounded(stack):
        async def watched(scope, receive, send):
            seen.append(scope["path"])
            await stack(scope, receive, send)

        return watched

    async with app.router.lifespan_context(app) as state:
        app.middleware_stack = surrounded(app.build_middleware_stack())

        async def with_state(scope, receive, send):
            await app(scope | {"state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(CHAT, content=b"{}", headers={"content-type": SHORT})
    assert (answer.status_code, seen) == (400, [CHAT])


async def test_another_method_is_refused_by_the_long_way(http):
    answer = await http.get(CHAT, headers={"content-type": SHORT})
    assert answer.status_code == 405


def test_the_document_knows_the_routes():
    paths = create_app(ApiSettings()).openapi()["paths"]
    for path in (CHAT, COMPLETIONS):
        assert "requestBody" in paths[path]["post"]
