"""`queueserve chat`: talk to a served model from the terminal, over the API that all others use."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
import httpx
import orjson

from queueserve.errors import QueueServeError

Message = dict[str, str]

_PATIENCE = httpx.Timeout(10.0, read=None)  # a queued request is silent for as long as it waits


class ChatError(QueueServeError):
    """The server is away, or has answered with an error; the message is for a person."""


@dataclass
class Chat:
    """A conversation with `model`, or with the first one the server lists."""

    client: httpx.Client
    model: str
    temperature: float
    max_tokens: int
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> Generator[str]:
        """Give the answer piece by piece; it becomes part of the conversation once it is whole."""
        question = {"role": "user", "content": text}
        request = {
            "model": self.model,
            "messages": [*self.messages, question],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": True,
        }
        answer = ""
        with (
            _explained(self.client),
            self.client.stream("POST", "/v1/chat/completions", json=request) as response,
        ):
            _check(response)
            for event in _events(response):
                for choice in event["choices"]:
                    piece = choice["delta"].get("content") or ""
                    answer += piece
                    yield piece
        self.messages += [question, {"role": "assistant", "content": answer}]


@contextmanager
def open_chat(
    url: str,
    model: str | None,
    *,
    temperature: float,
    max_tokens: int,
    api_key: str | None = None,
) -> Iterator[Chat]:
    """Connect to the server at `url`. Raises ChatError."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=_PATIENCE) as client:
        yield Chat(client, model or _first_model(client), temperature, max_tokens)


def say(chat: Chat, text: str) -> None:
    """Send one message and print the answer as it comes. Raises ChatError."""
    with closing(chat.ask(text)) as answer:
        for piece in answer:
            click.echo(piece, nl=False)
    click.echo()


def converse(chat: Chat) -> None:
    """Ask and answer until the end of input. Ctrl-C ends an answer, not the conversation."""
    click.echo(f"Talking to {chat.model} at {chat.client.base_url}. Ctrl-D ends it.", err=True)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if text.strip():
            _answer_or_explain(chat, text)


def _answer_or_explain(chat: Chat, text: str) -> None:
    try:
        say(chat, text)
    except KeyboardInterrupt:
        click.echo()  # closing the connection has freed the worker's slot
    except ChatError as error:
        click.echo(f"{error}", err=True)


def _first_model(client: httpx.Client) -> str:
    with _explained(client):
        response = client.get("/v1/models")
        _check(response)
        models = [model["id"] for model in response.json()["data"]]
    if not models:
        raise ChatError("No model is served yet. `queueserve status` shows who is there.")
    return str(models[0])


@contextmanager
def _explained(client: httpx.Client) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as error:
        raise ChatError(
            f"No server answers at {client.base_url} ({error}). "
            "Start one with `queueserve up`, or name yours with --url."
        ) from error
    except httpx.HTTPError as error:
        raise ChatError(f"The connection to the server broke: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ChatError(f"{client.base_url} does not answer as an OpenAI API: {error!r}") from error


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    raise ChatError(f"The server says ({response.status_code}): {message}")


def _events(response: httpx.Response) -> Iterator[Any]:
    """Give the stream's JSON objects; lines that are no data keep the connection alive."""
    for line in response.iter_lines():
        data = line.removeprefix("data:").lstrip()
        if data in (line, "[DONE]", ""):
            continue
        event = orjson.loads(data)
        if "error" in event:
            raise ChatError(f"The answer broke off: {event['error']['message']}")
        yield event
