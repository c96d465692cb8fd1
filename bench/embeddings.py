"""Texts per second: 2,000 short texts through the API, beside transformers called by hand.

By hand is what the model's card says: batches of 32, padded, mean pooling. Both in turns, on the
same texts, with one thread of torch each; the vectors must be equal.

    python -P bench/embeddings.py
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx
import openai
import torch
from transformers import AutoModel, AutoTokenizer

from workers.models import resolve

TEXTS = 2000
BATCH = 32
ROUNDS = 3
WORDS = ("the", "a", "queue", "worker", "text", "runs", "waits", "long", "short", "in", "order")
READY_WITHIN = 180.0  # seconds


def texts() -> list[str]:
    """Short texts, of 4 to 24 words."""
    draw = random.Random(7)  # noqa: S311 - no secret
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 24))) for _ in range(TEXTS)]


class ByHand:
    """The model in this process."""

    def __init__(self) -> None:
        path = resolve("minilm").path
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModel.from_pretrained(path).eval()
        torch.set_num_threads(1)

    @torch.inference_mode()
    def vectors(self, given: list[str]) -> torch.Tensor:
        """Return a row for each text."""
        parts = []
        for start in range(0, len(given), BATCH):
            batch = self._tokenizer(
                given[start : start + BATCH], padding=True, truncation=True, return_tensors="pt"
            )
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)))
        return torch.cat(parts)


class OverTheApi:
    """The openai client, on `queueserve up`."""

    def __init__(self, url: str) -> None:
        self._client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)

    def vectors(self, given: list[str]) -> torch.Tensor:
        """Return a row for each text."""
        answer = self._client.embeddings.create(model="all-minilm-l6-v2", input=given)
        return torch.tensor([one.embedding for one in answer.data])


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Run `queueserve up`, and give the address of its API."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "queueserve.cli", "up", "--engine", "transformers"),
                *("--model-path", "minilm", "--port", str(port), "--data-dir", data),
                *("--redis-port", str(free_port()), "--", "--threads", "1"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + READY_WITHIN
            while time.monotonic() < until:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/ready").is_success:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def main() -> None:
    """Measure, and print."""
    given = texts()
    best: dict[str, float] = {}
    seen: dict[str, torch.Tensor] = {}
    with served() as url:
        for ways in [{"by hand": ByHand(), "over the API": OverTheApi(url)}] * ROUNDS:
            for name, way in ways.items():
                way.vectors(given[:64])
                began = time.perf_counter()
                seen[name] = way.vectors(given)
                rate = TEXTS / (time.perf_counter() - began)
                print(f"{name:13} {rate:7.0f} texts/s", flush=True)
                best[name] = max(rate, best.get(name, 0.0))
    apart = (seen["by hand"] - seen["over the API"]).abs().max()
    print(f"best: {best}; threads by hand: {torch.get_num_threads()}; apart at most {apart:.1e}")


if __name__ == "__main__":
    main()
