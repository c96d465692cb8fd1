"""What `queueserve up` says when it is ready: lines that work when they are pasted."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - shown, not bound
_DEFAULT_URL = "http://127.0.0.1:8000"
_QUESTION = "What is the capital of France? Answer in one sentence."


@dataclass(frozen=True, slots=True)
class Address:
    """Where the API and Redis are."""

    scheme: str
    host: str  # as it is bound
    port: int
    redis_url: str
    keyed: bool = False  # requests need an API key

    @property
    def url(self) -> str:
        """The API server's root, as one can reach it from this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{_ANY.get(self.host, host)}:{self.port}"


def welcome(address: Address, model: str, *, chats: bool = True) -> str:
    """Give the text, with `model` as the example; `chats`: it generates."""
    chat = f"\n  Chat     {_chat(address)}" if chats else ""
    return f"""
  Model    {model}
  API      {address.url}/v1
  Try it   {_try_it(address, model, chats=chats)}{chat}
  Look in  {_redis_cli(address.redis_url)}   (valkey-cli does the same)
  Stop     Ctrl-C
"""


def _try_it(address: Address, model: str, *, chats: bool) -> str:
    if not chats:
        asked = {"query": _QUESTION, "documents": ["Paris is in France.", "Bread is food."]}
        return _curl(address, "rerank", {"model": model, **asked})
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "temperature": 0,  # a small model needs it to make sense, and a bound to come to an end
        "max_tokens": 64,
    }
    return _curl(address, "chat/completions", body)


def _curl(address: Address, path: str, body: dict[str, Any]) -> str:
    key = '-H "Authorization: Bearer $QUEUESERVE_API_KEY" ' if address.keyed else ""
    return (
        f"curl {address.url}/v1/{path} {key}-H 'Content-Type: application/json' "
        f"-d {shlex.quote(orjson.dumps(body).decode())}"
    )


def _chat(address: Address) -> str:
    command = shutil.which("queueserve") and "queueserve"
    if command is None:  # its virtual environment is not activated
        path = Path(sys.executable).with_name("queueserve")
        inside = path.is_relative_to(Path.cwd())
        command = str(path.relative_to(Path.cwd()) if inside else path)
    where = "" if address.url == _DEFAULT_URL else f" --url {address.url}"
    return f"{command} chat{where}"


def _redis_cli(url: str) -> str:
    if "+sentinel" in url.partition("://")[0]:  # several hosts, which urlsplit may refuse
        return "redis-cli, on the master that your sentinels name"
    parts = urlsplit(url)
    if parts.password:
        return "redis-cli -u with your Redis URL"
    if parts.scheme == "unix":
        return f"redis-cli -s {parts.path}"
    if url == "redis://127.0.0.1:6379/0":
        return "redis-cli"
    if parts.scheme == "redis" and parts.hostname == "127.0.0.1" and parts.path in ("", "/", "/0"):
        return f"redis-cli -p {parts.port or 6379}"
    return f"redis-cli -u {url}"
