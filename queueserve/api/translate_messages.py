"""A request to /v1/messages as a chat request. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.messages import (
    CountTokensRequest,
    ImageBlock,
    MessagesRequest,
    NamedTool,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
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
    "stop": "stop_sequences",
    "response_format": "output_config",
    "user": "metadata",
    "chat_template_kwargs": "thinking",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_prompt(body: CountTokensRequest) -> ChatCompletionRequest:
    """Return a chat request with this prompt. Raises RequestValidationError."""
    return chat_request(_prompt_members(body), _NAMES)


def to_chat(body: MessagesRequest) -> ChatCompletionRequest:
    """Return the chat request. Raises RequestValidationError."""
    return chat_request(
        _prompt_members(body)
        | {
            "stream": body.stream,
            "max_completion_tokens": body.max_tokens,
            "stop": body.stop_sequences or None,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "user": body.metadata and body.metadata.user_id,
        },
        _NAMES,
    )


def _prompt_members(body: CountTokensRequest) -> dict[str, Any]:
    """Return the members of the chat request that make the prompt."""
    conversation = Conversation()
    if body.system:
        conversation.say("system", _text(body.system))
    for turn in body.messages:
        _add(conversation, turn)
    # A conversation that ends with the assistant is one whose answer has been begun.
    continues = any(said["role"] == "assistant" for said in conversation.messages[-1:])
    config = body.output_config
    return {
        "model": body.model,
        "messages": conversation.messages,
        "continue_final_message": continues or None,
        "tools": [
            function_tool(tool.name, tool.description, tool.input_schema, strict=None)
            for tool in body.tools or ()
        ]
        or None,
        "tool_choice": _tool_choice(body.tool_choice),
        "parallel_tool_calls": _parallel(body.tool_choice),
        "response_format": config and config.format and _json_schema(config.format.schema_),
        "chat_template_kwargs": _thinking(body),
    }


def _add(conversation: Conversation, turn: Turn) -> None:
    if isinstance(turn.content, str):
        conversation.say(turn.role, turn.content)
        return
    parts: list[dict[str, Any]] = []
    for block in turn.content:
        match block:
            case TextBlock(text=text):
                parts.append({"type": "text", "text": text})
            case ImageBlock(source=source):
                parts.append(image_part(source.link))
            case ThinkingBlock(thinking=text):
                conversation.think(text)
            case ToolResultBlock():
                conversation.result(block.tool_use_id, _text(block.content or ""))
            case ToolUseBlock():
                _say(conversation, turn.role, parts)
                arguments = orjson.dumps(block.input).decode()
                conversation.call(function_call(block.id, block.name, arguments))
    _say(conversation, turn.role, parts)


def _say(conversation: Conversation, role: str, parts: list[dict[str, Any]]) -> None:
    if parts:
        texts = [part["text"] for part in parts if part["type"] == "text"]
        only_text = ("" if role == "assistant" else "\n").join(texts)
        conversation.say(role, only_text if len(texts) == len(parts) else [*parts])
        parts.clear()


def _text(content: str | Iterable[TextBlock]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content)


def _tool_choice(choice: ToolChoice | NamedTool | None) -> Any:
    match choice:
        case NamedTool(name=name):
            return named_function(name)
        case ToolChoice(type=kind):
            return _CHOICES[kind]
        case None:
            return None


def _parallel(choice: ToolChoice | NamedTool | None) -> bool | None:
    return False if choice and choice.disable_parallel_tool_use else None


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": schema, "strict": True},
    }


def _thinking(body: CountTokensRequest) -> dict[str, Any] | None:
    """Return the switch that chat templates of thinking models look at, since Qwen 3."""
    if body.thinking is None or body.thinking.type == "adaptive":
        return None
    return {"enable_thinking": body.thinking.type == "enabled"}
