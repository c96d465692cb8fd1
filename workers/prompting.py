"""A job's prompt as token ids: text, or messages rendered by the model's chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from queueserve.errors import InvalidRequestError
from queueserve.protocol import Job
from workers.engines.base import Tokenizer
from workers.templates import known_templates
from workers.templates.render import ChatTemplate, Message

INLINE_CHARS = 20_000
"""From this size on, a conversation is rendered in a thread; below, a thread would cost more."""

_RESERVED = {"messages", "tools", "documents", "add_generation_prompt"}
# Ends in a space, so that a template that trims the content can be told from one that keeps it.
_OPEN_END = "THE_FINAL_MESSAGE_IS_OPEN_HERE "


def _text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise InvalidRequestError(
            f"this model takes text only, no content part of type {kind!r}", param="messages"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError("a content part of type 'text' needs a text", param="messages")
    return text


def _message(template: ChatTemplate, message: Mapping[str, Any]) -> Message:
    """Return the message as the template can take it."""
    out = {key: value for key, value in message.items() if value is not None}
    if out.get("role") == "developer":  # OpenAI's newer name
        out["role"] = "system"
    content = out.get("content")
    form = template.form(str(out.get("role")))
    if isinstance(content, (list, tuple)):
        texts = [_text(part) for part in content]
        as_parts = [{"type": "text", "text": text} for text in texts]
        out["content"] = "\n".join(texts) if form == "text" else as_parts
    elif not isinstance(content, str | None):
        raise InvalidRequestError("a message's content is a string or a list", param="messages")
    elif content is not None and form == "parts":
        out["content"] = [{"type": "text", "text": content}]
    return out


def _open_end(message: Message) -> tuple[Message, str]:
    """Return the message with a mark after its text, and the text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _OPEN_END}, content
    if content:  # parts
        *first, last = content
        text = last["text"]
        return {**message, "content": [*first, {**last, "text": text + _OPEN_END}]}, text
    raise InvalidRequestError("the final message has no content to continue", param="messages")


def _cut(rendered: str, final: str) -> str:
    """Return what stands before the mark; without the white space that the template trims there."""
    at = rendered.rfind(_OPEN_END.strip())
    if at < 0 or final.strip() not in rendered:
        raise InvalidRequestError(
            "the chat template changes the final message, so it cannot be continued",
            param="messages",
        )
    kept = rendered.startswith(_OPEN_END, at)
    return rendered[:at] if kept else rendered[:at].rstrip()


class Prompter:
    """Turns jobs into token ids for one model.

    `chat_template` is the Jinja source, None if the model has none. Raises EngineError for one that
    does not parse.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = (
            None if chat_template is None else ChatTemplate(chat_template, tokenizer.special_tokens)
        )

    async def encode(self, job: Job) -> tuple[int, ...]:
        """Return the prompt's token ids. Raises InvalidRequestError."""
        if job.kind == "chat":
            return await self._tokenizer.encode(await self._chat(job), add_special=False)
        if isinstance(job.prompt, str):
            return await self._tokenizer.encode(job.prompt, add_special=True)
        return job.prompt

    async def _chat(self, job: Job) -> str:
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template: start its worker with --chat-template NAME or "
                f"FILE; the names are {', '.join(known_templates())}",
                param="messages",
            )
        if not job.messages:
            raise InvalidRequestError("messages must not be empty", param="messages")
        if reserved := _RESERVED & job.template_kwargs.keys():
            raise InvalidRequestError(
                f"chat_template_kwargs cannot set {', '.join(sorted(reserved))}",
                param="chat_template_kwargs",
            )
        messages = [_message(self._template, message) for message in job.messages]
        chars = sum(100 + len(str(message.get("content"))) for message in messages)
        if chars < INLINE_CHARS and not job.tools:
            return self._render(self._template, job, messages)
        return await asyncio.to_thread(self._render, self._template, job, messages)

    @staticmethod
    def _render(template: ChatTemplate, job: Job, messages: list[Message]) -> str:
        final = ""
        if job.continue_final_message:
            messages[-1], final = _open_end(messages[-1])
        text = template.render(
            messages,
            tools=list(job.tools) or None,
            add_generation_prompt=not job.continue_final_message,
            template_kwargs=job.template_kwargs,
        )
        return _cut(text, final) if job.continue_final_message else text
