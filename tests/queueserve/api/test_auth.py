"""API keys on every route but the two that watch the process; CORS for browsers, when asked for."""

from __future__ import annotations

import asyncio
import logging
import re

import httpx
import openai
import pytest
from starlette.datastructures import Headers

from queueserve.api.app import create_app
from queueserve.api.auth import OPEN_PATHS, ApiKeys, presented
from queueserve.settings import ApiSettings, Cors

KEY, OTHER = "sk-first-key", "sk-second-key"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def every_route() -> list[tuple[str, str]]:
    """Method and path of all that the application answers, those it does not document included."""
    found = []

    def walk(routes) -> None:
        for route in routes:
            if hasattr(route, "effective_candidates"):  # a router that was included
                walk(route.effective_candidates())
            else:
                path = re.sub(r"{[^}]*}", "x", route.path)
                found.extend((method, path) for method in sorted(route.methods))

    walk(create_app(ApiSettings()).routes)
    return found


@pytest.fixture
async def keyed(serve, hand):
    """The address of a server that wants a key."""
    return (await serve(hand.plane, api_keys=(KEY, OTHER))).url


async def test_every_route_but_health_wants_a_key(keyed):
    routes = every_route()
    assert ("POST", "/v1/chat/completions") in routes
    assert ("GET", "/openapi.json") in routes
    async with httpx.AsyncClient(base_url=keyed) as client:
        for method, path in [*routes, ("GET", "/nothing"), ("GET", "/v1/chat/completions/")]:
            for headers in ({}, {"authorization": f"Bearer {KEY}x"}, {"x-api-key": "nope"}):
                answer = await client.request(method, path, headers=headers)
                expected = path in OPEN_PATHS
                assert (answer.status_code != 401) is expected, (method, path, answer.text)


async def test_a_refusal_says_what_is_wrong_and_not_the_key(keyed):
    async with httpx.AsyncClient(base_url=keyed) as client:
        without = await client.get("/v1/models")
        wrong = await client.get("/v1/models", headers={"authorization": "Bearer sk-wrong"})
    for answer in (without, wrong):
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "sk-wrong" not in answer.text
    assert "none in the request" in without.text


@pytest.mark.parametrize("key", [KEY, OTHER])
async def test_the_openai_client_gets_in_with_its_key(keyed, key):
    async with openai.AsyncOpenAI(base_url=f"{keyed}/v1", api_key=key) as client:
        assert [model.id async for model in client.models.list()] == ["m"]


async def test_the_openai_client_raises_authentication_error(keyed):
    async with openai.AsyncOpenAI(base_url=f"{keyed}/v1", api_key="none") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_the_key_may_come_as_anthropics_clients_send_it(keyed):
    async with httpx.AsyncClient(base_url=keyed) as client:
        assert (await client.get("/v1/models", headers={"x-api-key": KEY})).status_code == 200


@pytest.mark.parametrize(
    "headers, key",
    [
        ({}, None),
        ({"authorization": "Bearer k"}, "k"),
        ({"authorization": "bearer  k "}, "k"),
        ({"authorization": "Basic k"}, None),
        ({"authorization": "Bearer "}, None),
        ({"authorization": "k"}, None),
        ({"authorization": "Bearer k", "x-api-key": "other"}, "k"),
        ({"x-api-key": "other"}, "other"),
        ({"x-api-key": ""}, None),
    ],
)
def test_where_the_key_stands(headers, key):
    assert presented(Headers(headers)) == key


def test_a_key_is_a_tenant_with_a_name_that_does_not_tell_it():
    keys = ApiKeys([KEY, OTHER])
    first, second = keys.tenant(KEY), keys.tenant(OTHER)
    assert first != second
    assert re.fullmatch(r"key-[0-9a-f]{8}", first)
    assert keys.tenant(KEY + " ") is None
    assert keys.tenant("") is None


async def test_the_tenant_is_the_keys_whatever_user_says(keyed, hand):
    async with openai.AsyncOpenAI(base_url=f"{keyed}/v1", api_key=KEY) as client:
        asking = asyncio.create_task(client.chat.completions.create(**CHAT, user="somebody else"))
        await hand.opened()
        hand.start()
        hand.finish()
        await asking
    assert hand.streams[0].job.tenant == ApiKeys([KEY]).tenant(KEY)


async def test_keys_are_in_no_repr_and_no_log(keyed, caplog):
    caplog.set_level(logging.DEBUG)
    assert KEY not in repr(ApiSettings(api_keys=(KEY,)))
    async with httpx.AsyncClient(base_url=keyed) as client:
        await client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"})
        await client.get("/v1/models", headers={"authorization": f"Bearer {KEY}x"})
    assert KEY not in caplog.text


async def test_the_document_tells_of_keys_only_where_they_are_asked_for(keyed, serve, hand):
    async with httpx.AsyncClient() as client:
        headers = {"authorization": f"Bearer {KEY}"}
        document = (await client.get(f"{keyed}/openapi.json", headers=headers)).json()
        open_server = (await serve(hand.plane)).url
        other = (await client.get(f"{open_server}/openapi.json")).json()
    assert document["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/models"]["get"]
    assert "security" not in other


# CORS

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "x-a"}


async def test_a_browser_may_ask_from_an_allowed_origin_and_needs_no_key_to_ask_whether(
    serve, hand
):
    server = await serve(
        hand.plane, api_keys=(KEY,), cors=Cors(origins=("https://a.example",), credentials=True)
    )
    async with httpx.AsyncClient(base_url=server.url) as client:
        good = {"origin": "https://a.example"}
        preflight = await client.options("/v1/chat/completions", headers=good | PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        refused = await client.get("/v1/models", headers=good)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        answer = await client.get("/v1/models", headers=good | {"x-api-key": KEY})
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        bad = await client.options(
            "/v1/chat/completions", headers={"origin": "https://b.example"} | PREFLIGHT
        )
        assert bad.status_code == 400
        assert "access-control-allow-origin" not in bad.headers


async def test_a_page_may_read_that_the_server_failed(serve, hand):
    origin = "https://a.example"
    server = await serve(hand.plane, cors=Cors(origins=(origin,)))
    hand.refusals = [ZeroDivisionError("a secret")]
    async with httpx.AsyncClient(base_url=server.url, headers={"origin": origin}) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["openai-processing-ms"]) >= 0


async def test_by_default_no_other_origin_may_read(http):
    answer = await http.get("/v1/models", headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in answer.headers
