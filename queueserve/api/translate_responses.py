"""A request to /v1/responses as a chat request, and what its Response repeats of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from queueserve.api.encrypted_content import unpacked
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.responses import (
    LOGPROBS,
    AllowedTools,
    FunctionCallItem,
    FunctionCallOutputItem,
    ImagePart,
    Item,
    JsonSchemaFormat,
    MessageItem,
    MessagePart,
    NamedTool,
    ReasoningItem,
    RefusalPart,
    ResponsesRequest,
    TextPart,
)
from queueserve.api.translate import (
    Conversation,
    chat_request,
    function_call,
    function_tool,
    image_part,
    named_function,
)

_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
}
_PREFIXES = {
    MessageItem: "msg",
    FunctionCallItem: "fc",
    FunctionCallOutputItem: "fco",
    ReasoningItem: "rs",
}
_SAME = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "user",
    "service_tier",
    "metadata",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "chat_template_kwargs",
    "parallel_tool_calls",
)


def to_chat(body: ResponsesRequest, earlier: Sequence[Item] = ()) -> ChatCompletionRequest:
    """Return the chat request, which goes on after the items of `earlier` responses.

    Raises RequestValidationError.
    """
    conversation = Conversation()
    if body.instructions:
        conversation.say("system", body.instructions)
    for item in (*earlier, *items_of(body)):
        _add(conversation, item)
    return chat_request(
        {name: getattr(body, name) for name in _SAME}
        | {
            "messages": conversation.messages,
            "max_completion_tokens": body.max_output_tokens,
            "tools": [
                function_tool(tool.name, tool.description, tool.parameters, strict=tool.strict)
                for tool in body.tools or ()
            ]
            or None,
            "tool_choice": _tool_choice(body.tool_choice),
            "response_format": _response_format(body),
            "logprobs": body.includes(LOGPROBS) or None,
            "top_logprobs": body.top_logprobs,
        },
        _NAMES,
    )


def items_of(body: ResponsesRequest) -> list[Item]:
    """Return the input as items."""
    if isinstance(body.input, str):
        return [MessageItem(type="message", role="user", content=body.input)]
    return body.input


def input_items(body: ResponsesRequest, reply_id: str) -> list[dict[str, Any]]:
    """Return the input as clients are shown it, each item with an id."""
    stem = reply_id.removeprefix("resp_")
    return [
        {"id": f"{_PREFIXES[type(item)]}_{stem}i{index:x}", **_shown(item)}
        for index, item in enumerate(items_of(body))
    ]


def head_of(body: ResponsesRequest, *, reply_id: str, created: int, store: bool) -> dict[str, Any]:
    """Return the members of a Response that its request decides."""
    choice = body.tool_choice
    return {
        "id": reply_id,
        "object": "response",
        "created_at": created,
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": _dumped(body.reasoning) if body.reasoning else None,
        "service_tier": "default" if body.service_tier in (None, "auto") else body.service_tier,
        "store": store,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}} | (_dumped(body.text) if body.text else {}),
        "tool_choice": "auto"
        if choice is None
        else choice
        if isinstance(choice, str)
        else _dumped(choice),
        "tools": [
            {"parameters": None, "strict": None} | _dumped(tool) for tool in body.tools or ()
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _shown(item: Item) -> dict[str, Any]:
    match item:
        case MessageItem(role=role, content=content):
            told = _dumped(item) | {"type": "message", "status": "completed"}
            if isinstance(content, str):
                kind = "output_text" if role == "assistant" else "input_text"
                told["content"] = [{"type": kind, "text": content}]
            if role == "assistant":
                told["content"] = [{"annotations": []} | part for part in told["content"]]
            return told
        case ReasoningItem():
            return {"summary": []} | _dumped(item)
        case _:
            return _dumped(item) | {"status": "completed"}


def _dumped(value: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = value.model_dump(exclude_none=True, by_alias=True)
    return dumped


def _add(conversation: Conversation, item: Item) -> None:
    match item:
        case MessageItem():
            conversation.say(item.role, _content(item))
        case FunctionCallItem():
            conversation.call(function_call(item.call_id, item.name, item.arguments))
        case FunctionCallOutputItem(output=output):
            conversation.result(
                item.call_id, output if isinstance(output, str) else _joined(output)
            )
        case ReasoningItem(encrypted_content=str(content)):
            conversation.think(unpacked(content))
        case ReasoningItem():
            conversation.think(_joined(item.content or item.summary or ()))


def _content(item: MessageItem) -> str | list[dict[str, Any]]:
    content = item.content
    if isinstance(content, str):
        return content
    texts = [part for part in content if not isinstance(part, ImagePart)]
    if len(texts) == len(content) and (item.role == "assistant" or len(texts) == 1):
        return _joined(texts)  # what a model has said is one text
    return [*map(_part, content)]


def _part(part: MessagePart) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return image_part(part.image_url, part.detail)
    return {"type": "text", "text": _text(part)}


def _joined(parts: Iterable[TextPart | RefusalPart]) -> str:
    return "".join(map(_text, parts))


def _text(part: TextPart | RefusalPart) -> str:
    return part.text if isinstance(part, TextPart) else part.refusal


def _tool_choice(choice: str | NamedTool | AllowedTools | None) -> Any:
    match choice:
        case NamedTool(name=name):
            return named_function(name)
        case AllowedTools():
            tools = [named_function(tool.name) for tool in choice.tools]
            return {
                "type": "allowed_tools",
                "allowed_tools": {"mode": choice.mode, "tools": tools},
            }
        case _:
            return choice


def _response_format(body: ResponsesRequest) -> Mapping[str, Any] | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if not isinstance(wanted, JsonSchemaFormat):
        return {"type": wanted.type}
    members = _dumped(wanted)
    members.pop("type")
    return {"type": "json_schema", "json_schema": members}
