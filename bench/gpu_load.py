"""A light HTTP load: streams of completions that start together, and when their tokens came.

A stream sends its requests one after the other, without a pause. A process of its own, so that its
work is not the server's. It reads bytes as they come and counts events, as a client library's own
cost would hide the server's. For every line on its input it runs a round and prints a JSON object,
so that several of these processes can begin together.

    echo | python -m bench.gpu_load --urls http://127.0.0.1:8000 --model m --streams 64
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

_EVENT = b'data: {"'
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_END = b"\r\n0\r\n\r\n"  # of a chunked answer
_BOUND = 180.0  # seconds that a round may take


@dataclass
class Stream:
    """What one request gave; times are of the performance counter, in seconds."""

    began: float = 0.0
    times: list[float] = field(default_factory=list)  # of every event
    tokens: int = 0


class _Reader(asyncio.Protocol):
    """Sends the requests of one stream one by one, and notes when their events come."""

    def __init__(self, requests: list[bytes]) -> None:
        self.streams: list[Stream] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._transport: asyncio.Transport
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def begin(self) -> None:
        """Send the next request."""
        request = self._requests[len(self.streams)]
        self.streams.append(Stream(began=time.perf_counter()))
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        stream = self.streams[-1]
        if not stream.times and not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._end(RuntimeError(data[:500].decode(errors="replace")))
            return
        joined = self._tail + data
        seen = self._tail.count(_EVENT)
        stream.times += [now] * (joined.count(_EVENT) - seen)
        self._tail = joined[-1500:]  # the usage comes in the last event
        if b"data: [DONE]" in joined and joined.endswith(_END):
            found = _USAGE.findall(joined)
            stream.tokens = int(found[-1]) if found else 0
            self._tail = b""
            if len(self.streams) < len(self._requests):
                self.begin()
            else:
                self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or RuntimeError("the server closed the connection"))

    def close(self) -> None:
        """Give the connection up."""
        self._transport.close()

    def _end(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def _request(host: str, model: str, prompt: list[int], tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer none\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def round_of(options: argparse.Namespace, streams: int, draw: random.Random) -> list[Stream]:
    """Run `streams` streams at once, spread over the servers; each request has its own prompt."""
    loop = asyncio.get_running_loop()
    readers: list[_Reader] = []
    for number in range(streams):
        at = urlsplit(options.urls[number % len(options.urls)])
        requests = [
            _request(
                at.netloc,
                options.model,
                [draw.randrange(100, options.vocabulary) for _ in range(options.prompt)],
                options.tokens,
            )
            for _ in range(options.requests)
        ]
        _, reader = await loop.create_connection(partial(_Reader, requests), at.hostname, at.port)
        readers.append(reader)
    for reader in readers:
        reader.begin()
    try:
        async with asyncio.timeout(_BOUND):
            await asyncio.gather(*(reader.ended for reader in readers))
    finally:
        for reader in readers:
            reader.close()
    return [stream for reader in readers for stream in reader.streams]


def summary(streams: list[Stream]) -> dict[str, object]:
    """The rate of a round in tokens/s, and times in ms."""
    start = min(stream.began for stream in streams)
    end = max(stream.times[-1] for stream in streams)
    tokens = sum(stream.tokens for stream in streams)
    return {
        "tokens": tokens,
        "began": start,
        "ended": end,
        "seconds": end - start,
        "rate": tokens / (end - start),
        "first_ms": [1000 * (stream.times[0] - stream.began) for stream in streams],
        "gaps_ms": [
            1000 * (later - earlier)
            for stream in streams
            for earlier, later in zip(stream.times[:-1], stream.times[1:-1], strict=False)
        ],
    }


async def main(options: argparse.Namespace) -> None:
    """Run a round for every line that is read, and print it."""
    draw = random.Random(options.seed)  # noqa: S311  # prompts, no secrets
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(summary(await round_of(options, options.streams, draw))), flush=True)


def read_loads(text: str) -> list[tuple[int, int]]:
    """Read "1x20,64x3": 1 stream of 20 requests, then 64 streams of 3."""
    pairs = [load.partition("x") for load in text.split(",")]
    return [(int(streams), int(requests)) for streams, _, requests in pairs]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Streams of completions against servers.")
    parser.add_argument("--urls", nargs="+", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--requests", type=int, default=1, help="of a stream, one after the other")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--vocabulary", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
