"""What is too large is a 400 that names the field, and /openapi.json says where that begins."""

from __future__ import annotations

from typing import get_args

import pytest
from msgspec.structs import replace

from queueserve.api.app import create_app
from queueserve.api.limits import (
    MAX_CHARS,
    MAX_INPUT_CHARS,
    MAX_INPUT_TOKENS,
    MAX_PROMPT_TOKENS,
    MAX_QUERY_CHARS,
    MAX_TOOLS,
)
from queueserve.protocol import JobKind
from queueserve.settings import ApiSettings

LONG = "a" * (MAX_CHARS + 1)
HALF = "a" * (MAX_CHARS // 2)
IDS = [1] * (MAX_PROMPT_TOKENS + 1)
HALF_IDS = [1] * (MAX_PROMPT_TOKENS // 2)
QUERY = "a" * (MAX_QUERY_CHARS + 1)
CHAT = {"messages": [{"role": "user", "content": LONG}]}
CHECK = {"model": "m", "prompt": HALF}
TOO_LARGE = [
    ("/tokenize", {"prompt": LONG}, "prompt"),
    ("/tokenize", CHAT, "messages"),
    ("/detokenize", {"tokens": IDS}, "tokens"),
    ("/api/v1/token_check", {"prompts": [CHECK | {"prompt": LONG}]}, "prompts[0].prompt"),
    ("/api/v1/token_check", {"prompts": [CHECK] * 3}, "prompts"),
    ("/v1/completions", {"prompt": LONG}, "prompt"),
    ("/v1/completions", {"prompt": [HALF] * 3}, "prompt"),
    ("/v1/completions", {"prompt": IDS}, "prompt"),
    ("/v1/completions", {"prompt": [HALF_IDS] * 3}, "prompt"),
    ("/v1/embeddings", {"input": LONG}, "input"),
    ("/v1/embeddings", {"input": ["a", LONG]}, "input[1]"),
    ("/v1/embeddings", {"input": [HALF] * (MAX_INPUT_CHARS // len(HALF) + 1)}, "input"),
    ("/v1/embeddings", {"input": IDS}, "input"),
    ("/v1/embeddings", {"input": [HALF_IDS] * (MAX_INPUT_TOKENS // len(HALF_IDS) + 1)}, "input"),
    ("/v1/rerank", {"query": QUERY, "documents": ["a"]}, "query"),
    ("/v1/rerank", {"query": "a", "documents": [LONG]}, "documents[0]"),
    ("/v1/rerank", {"query": "a", "documents": [{"text": LONG}]}, "documents[0].text"),
    ("/v1/rerank", {"query": "a", "documents": [{"text": HALF}, *[HALF] * 8]}, "documents"),
    ("/v1/score", {"text_1": QUERY, "text_2": "a"}, "text_1"),
    ("/v1/score", {"text_1": [QUERY], "text_2": ["a"]}, "text_1[0]"),
    ("/v1/score", {"text_1": "a", "text_2": LONG}, "text_2"),
    ("/v1/score", {"text_1": "a", "text_2": [HALF] * 9}, "text_2"),
    ("/v1/chat/completions", CHAT, "messages"),
    ("/v1/messages", CHAT | {"max_tokens": 1}, "messages"),
    ("/v1/responses", {"input": LONG}, "input"),
]


@pytest.fixture
async def roomy(hand, open_app):
    """A client of an application that lets all of these bodies in."""
    hand.models = [replace(card, tasks=get_args(JobKind)) for card in hand.models]
    async with open_app(ApiSettings(max_body_bytes=2**30), hand.plane) as client:
        yield client


@pytest.mark.parametrize("path, body, param", TOO_LARGE)
async def test_what_is_too_large_is_named(roomy, hand, path, body, param):
    answer = await roomy.post(path, json={"model": "m"} | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    if path == "/v1/messages":  # as Anthropic's clients expect it: without a field of its own
        assert param in error["message"]
    else:
        assert (error["param"], error["code"]) == (param, "invalid_value")
    assert len(answer.content) < 1000
    assert hand.streams == []


def parts(schema: dict, schemas: dict):
    """All schemas inside of one."""
    yield schema
    inner = [*schema.get("anyOf", ()), *schema.get("properties", {}).values()]
    if "items" in schema:
        inner.append(schema["items"])
    if "$ref" in schema:
        inner.append(schemas[schema["$ref"].rpartition("/")[2]])
    for one in inner:
        yield from parts(one, schemas)


FIELDS = {
    "TokenizeRequest": ("prompt", "messages"),
    "DetokenizeRequest": ("tokens",),
    "TokenCheckRequest": ("prompts",),
    "CompletionRequest": ("prompt",),
    "EmbeddingRequest": ("input",),
    "RerankRequest": ("query", "documents"),
    "ScoreRequest": ("text_1", "text_2"),
}


@pytest.fixture(scope="module")
def schemas():
    """Those of /openapi.json, which takes a second to make."""
    return create_app(ApiSettings()).openapi()["components"]["schemas"]


@pytest.mark.parametrize("name", FIELDS)
def test_the_document_says_how_large_a_field_may_be(schemas, name):
    for field in FIELDS[name]:
        whole = schemas[name]["properties"][field]
        found = list(parts(whole, schemas)) if field != "messages" else [*whole["anyOf"]]
        assert {"array", "string"} & {one.get("type") for one in found}
        for one in found:
            if one.get("type") == "array":
                assert one["maxItems"], (name, field)
            if one.get("type") == "string" and "enum" not in one:
                assert one["maxLength"], (name, field)
        if "array" in {one.get("type") for one in found} and field != "tokens":
            told = "".join(one.get("description", "") for one in (whole, *found))
            assert "together" in told, (name, field)


# Tools

TOOLS = {
    "/v1/chat/completions": lambda name: {"type": "function", "function": {"name": name}},
    "/v1/responses": lambda name: {"type": "function", "name": name},
    "/v1/messages": lambda name: {"name": name, "input_schema": {}},
}
ASKED = {"input": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


@pytest.mark.parametrize("path", TOOLS)
async def test_as_many_tools_as_the_document_says_and_with_such_names(http, schemas, path):
    request = {"chat": "ChatCompletion", "responses": "Responses", "messages": "Messages"}
    tools = schemas[request[path.split("/")[2]] + "Request"]["properties"]["tools"]
    [names] = {one["pattern"] for one in parts(tools, schemas) if "pattern" in one}
    [counts] = {one["maxItems"] for one in parts(tools, schemas) if "maxItems" in one}
    assert (counts, names) == (MAX_TOOLS, r"^[a-zA-Z0-9_.\-]{1,128}$")
    body = {"model": "m"} | ASKED
    if path == "/v1/responses":
        body.pop("max_tokens")
    tool = TOOLS[path]
    for wrong in ([tool(f"f{at}") for at in range(MAX_TOOLS + 1)], [tool("a b")], [tool("é")]):
        answer = await http.post(path, json=body | {"tools": wrong})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("tools")
