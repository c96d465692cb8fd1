"""Renders chat templates as Hugging Face defines them, so that a template made for it fits here.

What goes wrong in a template is the request's error, never the worker's: the messages are the
client's, and templates refuse what they do not know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, NoReturn, TypeAlias

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from queueserve.errors import EngineError, InvalidRequestError

Message: TypeAlias = dict[str, Any]
ContentForm: TypeAlias = Literal["text", "parts", "both"]  # a string, a list of parts, or either

MAX_CHARS = 16_000_000
"""Characters that a template may write; more than any context holds."""
MAX_SECONDS = 10.0
"""Time that a template may take."""
_PROBE = "THE_CONTENT_OF_A_MESSAGE"


class _RefusalError(TemplateError):
    """A template called `raise_exception`."""


class _Generation(Extension):
    """Accepts `{% generation %}`, which marks the assistant's part for training."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise _RefusalError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - local time is what templates mean


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the order of Hugging Face's filter
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    # Jinja's own filter escapes what HTML must not have.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(  # prompts are text, not HTML: no autoescape
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _bounded(pieces: Iterator[str]) -> str:
    """Join what a template writes. Raises InvalidRequestError when it goes on for too long."""
    end, chars, text = time.monotonic() + MAX_SECONDS, 0, []
    for piece in pieces:
        text.append(piece)
        chars += len(piece)
        if chars > MAX_CHARS or time.monotonic() > end:
            raise InvalidRequestError(
                "the chat template makes too much of these messages: it may write "
                f"{MAX_CHARS} characters in {MAX_SECONDS:g} s",
                param="messages",
            )
    return "".join(text)


class ChatTemplate:
    """A compiled chat template.

    `variables` are the tokenizer's special tokens ("bos_token", …). Raises EngineError for a source
    that is not a template.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise EngineError(
                f"the chat template does not parse: line {error.lineno}: {error.message}; "
                "--chat-template NAME or FILE replaces it"
            ) from error
        self._variables = variables
        self._forms = {role: self._form(role) for role in ("system", "user", "assistant")}
        self.takes_system = self._takes_system()

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt's text. Raises InvalidRequestError (param "messages")."""
        variables = {
            **self._variables,
            **(template_kwargs or {}),
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _bounded(self._template.generate(variables))
        except InvalidRequestError:
            raise
        except _RefusalError as error:
            raise InvalidRequestError(str(error), param="messages") from error
        except Exception as error:  # a template runs any code, so it can raise anything
            reason = str(error) or type(error).__name__
            raise InvalidRequestError(
                f"the chat template cannot render these messages: {reason}",
                param="messages",
            ) from error

    def form(self, role: str) -> ContentForm:
        """Return what the template takes as the content of a role's messages."""
        return self._forms.get(role, "text")

    def _takes_system(self) -> bool:
        parts = [{"type": "text", "text": _PROBE}]
        return any(self._probe("system", content) for content in (_PROBE, parts))

    def _form(self, role: str) -> ContentForm:
        # Tried, not read from the source: templates find many ways to look at a content.
        as_text = self._probe(role, _PROBE)
        as_parts = self._probe(role, [{"type": "text", "text": _PROBE}])
        if as_text is not None and as_text == as_parts:
            return "both"
        return "parts" if as_text is None and as_parts is not None else "text"

    def _probe(self, role: str, content: Any) -> str | None:
        """Return what the template makes of the content; None if it refuses or ignores it."""
        messages: list[Message] = [{"role": role, "content": content}]
        if role == "system":
            messages.append({"role": "user", "content": "?"})
        elif role == "assistant":
            messages.insert(0, {"role": "user", "content": "?"})
        try:
            text = self.render(messages)
        except InvalidRequestError:
            return None
        return text if _PROBE in text else None
