"""Images in every dialect: what may be one, where it may lie, and that nothing is ever fetched."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.api.limits import MAX_IMAGE_BYTES, MAX_IMAGES
from queueserve.protocol import ModelCard
from queueserve.settings import ApiSettings

PNG = "data:image/png;base64,iVBORw0KGgo="
HOST = "images.example"


def chat(link: str) -> tuple[str, dict]:
    part = {"type": "image_url", "image_url": {"url": link}}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}


def tool_result(link: str) -> tuple[str, dict]:
    part = {"type": "image_url", "image_url": {"url": link}}
    told = {"role": "tool", "tool_call_id": "c", "content": [part]}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}, told]}


def responses(link: str) -> tuple[str, dict]:
    part = {"type": "input_image", "image_url": link, "detail": "auto"}
    return "/v1/responses", {"input": [{"role": "user", "content": [part]}]}


def function_output(link: str) -> tuple[str, dict]:
    part = {"type": "input_image", "image_url": link}
    told = {"type": "function_call_output", "call_id": "c", "output": [part]}
    return "/v1/responses", {"input": [told]}


def source(link: str) -> dict:
    if link.startswith("data:"):
        kind, _, data = link.removeprefix("data:").partition(",")
        media_type = kind.removesuffix(";base64")
        return {"type": "base64", "media_type": media_type, "data": data}
    return {"type": "url", "url": link}


def messages(link: str) -> tuple[str, dict]:
    block = {"type": "image", "source": source(link)}
    turn = {"role": "user", "content": [block]}
    return "/v1/messages", {"max_tokens": 4, "messages": [turn]}


def nested(link: str) -> tuple[str, dict]:
    block = {"type": "image", "source": source(link)}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    turn = {"role": "user", "content": [result]}
    return "/v1/messages", {"max_tokens": 4, "messages": [turn]}


@pytest.fixture
async def site():
    """A site on this machine, and who came to it."""
    visitors = []
    async with await asyncio.start_server(
        lambda _, writer: visitors.append(writer.close()), "127.0.0.1", 0
    ) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", visitors


IN_MESSAGES = [chat, responses, messages]
IN_RESULTS = [tool_result, function_output, nested]


@pytest.fixture
def seeing(hand):
    """The one model takes images; gives its plane."""
    hand.models = [ModelCard(name="m", pool="m", context_length=100, engine="hand", images=True)]
    return hand


@pytest.fixture
async def open_http(seeing, open_app):
    """A client of an application with an allowed host, and room for large images."""
    settings = ApiSettings(max_body_bytes=40_000_000, allowed_image_hosts=(HOST, "cdn.example:444"))
    async with open_app(settings, seeing.plane) as client:
        yield client


async def refused(client, asking, link: str) -> str:
    path, body = asking(link)
    answer = await client.post(path, json={"model": "m"} | body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


@pytest.mark.parametrize("asking", IN_MESSAGES)
async def test_a_model_that_sees_none_says_so(http, hand, asking):
    assert await refused(http, asking, PNG) == "The model 'm' takes no images."
    assert hand.streams == []


@pytest.mark.parametrize("asking", IN_RESULTS)
async def test_what_a_tool_gives_holds_none(open_http, hand, asking):
    message = await refused(open_http, asking, PNG)
    assert "cannot hold images" in message or "is not supported" in message
    assert hand.streams == []


@pytest.mark.parametrize("asking", IN_MESSAGES)
async def test_nothing_is_fetched_and_no_host_is_allowed_by_default(http, seeing, site, asking):
    address, visitors = site
    message = await refused(http, asking, f"{address}/cat.png")
    assert message.startswith("Images of 127.0.0.1:")
    assert seeing.streams == []
    assert visitors == []


@pytest.mark.parametrize(
    "link",
    [
        *("file:///etc/passwd", "ftp://images.example/a", "//images.example/a", "", "cat.png"),
        *("http://user@images.example/a", "http://images.example:444@evil.example/"),
        *("http://evil.example\\@images.example/", "https://images.example /a"),
        *("https://images.example/\ta", "https://im\u0430ges.example/a", "https://[::1]/a"),
        *("https://images.example/" + "a" * 5000, "https:images.example/a"),
        *("data:image/svg+xml;base64,iVBORw0KGgo=", "data:text/html;base64,aaaa"),
        *("data:image/png,raw", "data:image/png;base64,", "data:image/png;base64,a"),
        *(
            "data:image/png;base64,aa%3D",
            "data:image/png;base64,aaaa\n",
            "DATA:image/png;base64,aa==",
        ),
    ],
)
@pytest.mark.parametrize("asking", IN_MESSAGES)
async def test_what_is_no_image_is_refused(open_http, seeing, link, asking):
    assert "mage" in await refused(open_http, asking, link)
    assert seeing.streams == []


@pytest.mark.parametrize(
    "link, allowed",
    [
        ("https://images.example/a.png?b=c#d", True),
        ("http://IMAGES.example", True),
        ("https://cdn.example:444/a", True),
        ("https://cdn.example/a", False),
        ("https://images.example:22/a", False),
        ("https://images.example./a", False),
        ("https://not-images.example/a", False),
        ("https://images.example.evil.example/a", False),
        ("http://169.254.169.254/latest", False),
    ],
)
async def test_a_link_is_taken_if_its_host_is_allowed(open_http, seeing, link, allowed):
    if not allowed:
        assert "are not allowed here" in await refused(open_http, chat, link)
        return
    path, body = chat(link)
    asking = asyncio.create_task(open_http.post(path, json={"model": "m"} | body))
    await seeing.opened()
    seeing.start()
    seeing.finish()
    assert (await asking).status_code == 200
    (message,) = seeing.streams[0].job.messages
    assert message["content"] == [{"type": "image_url", "image_url": {"url": link}}]


async def test_size_and_number_are_bounded(open_http, seeing):
    large = "data:image/png;base64," + "A" * (MAX_IMAGE_BYTES // 3 * 4 + 8)
    assert f"at most {MAX_IMAGE_BYTES} bytes" in await refused(open_http, chat, large)

    def many(link: str) -> tuple[str, dict]:
        path, body = chat(link)
        return path, {"messages": body["messages"] * (MAX_IMAGES + 1)}

    assert f"more than {MAX_IMAGES} images" in await refused(open_http, many, PNG)
    assert seeing.streams == []


async def test_a_models_card_tells_that_it_takes_them(http, seeing):
    assert "images" in (await http.get("/v1/models/m")).json()["capabilities"]
