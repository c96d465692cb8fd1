"""The bench's engine behind a bare ASGI application: what Python and uvicorn cost at the least.

It does nothing that a server must: no checks, no queue, no cancel. `python bench/bare.py --port N`
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from engine import BenchEngine

from queueserve.protocol import Sampling
from workers.engines.base import Output, Sequence
from workers.engines.fake_tokens import VOCABULARY

_SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
_JSON = [(b"content-type", b"application/json")]
_OTHERS = {  # what routers ask a server for before they trust it
    "/v1/models": {"object": "list", "data": [{"id": "bench", "object": "model"}]},
    "/get_model_info": {"model_path": "bench", "is_generation": True},
    "/model_info": {"model_path": "bench", "is_generation": True},
    "/get_server_info": {"model_path": "bench", "served_model_name": "bench", "dp_size": 1},
    "/server_info": {"model_path": "bench", "served_model_name": "bench", "dp_size": 1},
    "/version": {"version": "0.25.0"},
}


class Bare:
    """The application; the engine runs in the same event loop."""

    def __init__(self, engine: BenchEngine) -> None:
        self._engine = engine
        self._lines: dict[str, asyncio.Queue[Output]] = {}
        self._numbers = itertools.count()

    def sink(self, outputs: list[Output]) -> None:
        """Hand an engine step on."""
        for output in outputs:
            self._lines[output.id].put_nowait(output)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] != "/v1/chat/completions":
            await _send(send, _JSON, orjson.dumps(_OTHERS.get(scope["path"], {"status": "ok"})))
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await self._stream(orjson.loads(body), send)

    async def _stream(self, request: dict[str, Any], send: Any) -> None:
        name = f"chatcmpl-{next(self._numbers)}"
        line = self._lines[name] = asyncio.Queue()
        sampling = Sampling(max_tokens=request["max_tokens"])
        self._engine.add(Sequence(id=name, prompt=(1,), sampling=sampling))
        head = (
            f'data: {{"id":"{name}","object":"chat.completion.chunk","created":1795371084,'
            f'"model":"bench","system_fingerprint":"fake-1","choices":[{{"index":0,"delta":'
        ).encode()
        await send({"type": "http.response.start", "status": 200, "headers": _SSE})
        finish = None
        while finish is None:
            output = await line.get()
            finish = output.finish
            text = orjson.dumps(VOCABULARY[output.tokens[0]].decode())
            chunk = b'%b{"content":%b},"logprobs":null,"finish_reason":null}]}\n\n' % (head, text)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        del self._lines[name]
        end = b'%b{},"logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n' % head
        await send({"type": "http.response.body", "body": end, "more_body": False})


async def _send(send: Any, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def main(options: argparse.Namespace) -> None:
    """Serve until SIGTERM; SIGUSR1 writes the engine's own CPU seconds."""
    engine = BenchEngine(slots=options.slots, tick=options.tick)
    app = Bare(engine)
    await engine.start(app.sink)
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGUSR1, lambda: options.own.write_text(f"{engine.own_seconds:.6f}")
    )
    config = uvicorn.Config(
        app, port=options.port, log_config=None, lifespan="off", http="httptools", ws="none"
    )
    await uvicorn.Server(config).serve()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tick", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--own", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(parse()))
