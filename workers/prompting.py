"""A job's prompt as token ids: text, or messages rendered by the model's chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from queueserve.errors import InvalidRequestError
from queueserve.protocol import Job
from workers.engines.base import Tokenizer
from workers.templates import known_templates
from workers.templates.dialects import REASONING_MARKS, Dialect
from workers.templates.render import ChatTemplate, Message
from workers.tools import ToolForms

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
    return _in_form(template, out)


def _in_form(template: ChatTemplate, message: Message) -> Message:
    """Return the message with its content as the template takes it."""
    out = dict(message)
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


def _uses_tools(message: Message) -> bool:
    return bool(message.get("tool_calls")) or message.get("role") == "tool"


def _bound(job: Job) -> dict[str, Any]:
    """Return the template's switches for an output that is bound: it has no room for reasoning."""
    return {"enable_thinking": False} if job.constraint else {}


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and what the output begins with for the reader, as the prompt ends with it."""

    tokens: tuple[int, ...]
    opening: str = ""


class Prompter:
    """Turns jobs into token ids for one model.

    `chat_template` is the Jinja source, None if the model has none. Raises EngineError for one that
    does not parse.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_template: str | None, dialect: Dialect | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._dialect = dialect or Dialect()
        self._template = (
            None if chat_template is None else ChatTemplate(chat_template, tokenizer.special_tokens)
        )
        short_ids = self._dialect.tools == "mistral"  # its templates refuse all others
        self._tools = self._template and ToolForms(self._template, short_ids=short_ids)

    async def encode(self, job: Job) -> tuple[int, ...]:
        """Return the prompt's token ids. Raises InvalidRequestError."""
        return (await self.prompt(job)).tokens

    async def prompt(self, job: Job) -> Prompt:
        """Return the prompt. Raises InvalidRequestError."""
        if job.kind == "chat":
            text = await self._chat(job)
            tokens = await self._tokenizer.encode(text, add_special=False)
            return Prompt(tokens, self._opening(job, text))
        if isinstance(job.prompt, str):
            return Prompt(await self._tokenizer.encode(job.prompt, add_special=True))
        return Prompt(job.prompt)

    def _opening(self, job: Job, text: str) -> str:
        """Return the tag with which a prompt opens the reasoning; a bound output has none."""
        if self._dialect.reasoning is None or job.constraint or job.continue_final_message:
            return ""
        tag, _ = REASONING_MARKS[self._dialect.reasoning]
        return text[text.rindex(tag) :] if text.rstrip().endswith(tag) else ""

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
        tools = list(job.tools)
        if self._tools and (tools or any(_uses_tools(message) for message in messages)):
            messages, tools = self._tools.prepare(messages, tools)
            messages = [_in_form(self._template, message) for message in messages]
        chars = sum(100 + len(str(message.get("content"))) for message in messages)
        if chars < INLINE_CHARS and not job.tools:
            return self._render(self._template, job, messages, tools)
        return await asyncio.to_thread(self._render, self._template, job, messages, tools)

    @staticmethod
    def _render(template: ChatTemplate, job: Job, messages: list[Message], tools: list[Any]) -> str:
        final = ""
        if job.continue_final_message:
            messages[-1], final = _open_end(messages[-1])
        text = template.render(
            messages,
            tools=tools or None,
            add_generation_prompt=job.add_generation_prompt and not job.continue_final_message,
            template_kwargs={**_bound(job), **job.template_kwargs},
        )
        return _cut(text, final) if job.continue_final_message else text
