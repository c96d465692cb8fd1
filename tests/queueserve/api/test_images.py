"""Images are refused in every dialect, wherever they lie; and nothing is ever fetched."""

from __future__ import annotations

import asyncio

import pytest

LINKS = ["data:image/png;base64,iVBORw0KGgo=", "{http}/cat.png", "file:///etc/passwd"]


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
    kind, _, data = link.partition(":")
    if kind == "data":
        return {"type": "base64", "media_type": "image/png", "data": data.rpartition(",")[2]}
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


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(
    "asking", [chat, tool_result, responses, function_output, messages, nested]
)
async def test_an_image_is_a_400_that_names_the_model_and_nothing_is_fetched(
    http, hand, site, asking, link
):
    address, visitors = site
    path, body = asking(link.replace("{http}", address))
    answer = await http.post(path, json={"model": "m"} | body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "the model 'm' takes text only" in message
    assert any(kind in message for kind in ("'image_url'", "'input_image'", "'image'"))
    assert hand.streams == []
    assert visitors == []
