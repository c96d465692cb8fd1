"""A stub worker for FastChat: its protocol and one token a tick, with nothing behind it.

Runs in FastChat's environment, on uvicorn without a framework.

    python bench/fastchat_worker.py --controller URL --port N --tick SECONDS
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import requests
import uvicorn
from fastchat.conversation import get_conv_template

STATUS = {"model_names": ["bench"], "speed": 1, "queue_length": 0}


class Stub:
    """The application. All streams step together; every token repeats all text, as theirs do."""

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._step = asyncio.Event()
        self._streams = 0
        self._busy = asyncio.Event()
        conversation = get_conv_template("one_shot")
        conversation.sep_style = int(conversation.sep_style)
        self._answers = {
            "/worker_get_status": STATUS,
            "/model_details": {"context_length": 1_000_000},
            "/count_token": {"count": 10, "error_code": 0},
            "/worker_get_conv_template": {"conv": vars(conversation)},
        }

    async def steps(self) -> None:
        """Wake all streams, for ever; without any, stand still."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._busy.wait()
            due = max(due + self._tick, loop.time())
            await asyncio.sleep(max(0.0, due - loop.time()))
            step, self._step = self._step, asyncio.Event()
            step.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/worker_generate_stream":
            await self._generate(json.loads(body), send)
        else:
            await _send(send, json.dumps(self._answers.get(scope["path"], {})).encode())

    async def _generate(self, request: dict[str, Any], send: Any) -> None:
        self._streams += 1
        self._busy.set()
        try:
            await self._tokens(int(request["max_new_tokens"]), send)
        finally:
            self._streams -= 1
            if not self._streams:
                self._busy.clear()
        await _send(send, b"")

    async def _tokens(self, count: int, send: Any) -> None:
        text = ""
        for number in range(1, count + 1):
            await self._step.wait()
            text += " word"
            usage = {"prompt_tokens": 10, "completion_tokens": number, "total_tokens": 10 + number}
            reason = "length" if number == count else None
            event = {"text": text, "error_code": 0, "usage": usage, "finish_reason": reason}
            body = json.dumps(event).encode() + b"\0"
            await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send(send: Any, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})


def register(controller: str, address: str) -> None:
    """Tell FastChat's controller of this worker."""
    status = {"worker_status": STATUS, "check_heart_beat": False, "multimodal": False}
    requests.post(
        f"{controller}/register_worker", json={"worker_name": address, **status}, timeout=10
    ).raise_for_status()


async def main(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    app = Stub(options.tick)
    stepping = asyncio.create_task(app.steps())
    config = uvicorn.Config(app, port=options.port, log_config=None, lifespan="off", ws="none")
    await uvicorn.Server(config).serve()
    stepping.cancel()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--controller", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tick", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    register(given.controller, f"http://127.0.0.1:{given.port}")
    asyncio.run(main(given))
