"""Real engines: a worker is killed in mid-stream, and another one goes on, greedy and exact."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from model_files import write_wordy_llama

from queueserve.protocol import Delta, Job, Sampling
from queueserve.queue.plane import open_control_plane
from workers.engines.conversion import converted
from workers.models import resolve

PROMPT = "Write a short story about a dog and a lighthouse."
# Seconds of computing are left when the worker dies, for which no busy machine stops a test.
TOKENS = {"llama_cpp": 60, "transformers": 400}
# Between the top two logprobs: Q4 weights, for which llama.cpp has other kernels where it computes
# some 64 tokens at once, as a worker that goes on does; and fp32.
NEAR_TIE = {"llama_cpp": 0.3, "transformers": 1e-3}


@pytest.fixture
def llama_cpp():
    return "--engine", "llama_cpp"


@pytest.fixture
def transformers(tmp_path, models_dir):
    model = tmp_path / "wordy"
    smollm2 = Path(resolve(engine="transformers").path)
    write_wordy_llama(model, converted(smollm2, models_dir / "models"))
    return "--engine", "transformers", "--dtype", "float32", "--model-path", str(model)


def job(number: int, tokens: int) -> Job:
    return Job(
        id=f"j{number}",
        pool="m",
        model="m",
        kind="chat",
        messages=({"role": "user", "content": PROMPT},),
        sampling=Sampling(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=2),
    )


async def read(stream, *, after=None, then=None):
    """Tokens, text and logprobs; when `after` tokens are there, `then` is awaited once."""
    tokens, text, logprobs = [], "", []
    async for events in stream:
        for event in events:
            if isinstance(event, Delta):
                tokens += event.tokens
                text += event.text
                logprobs += event.logprobs or ()
        if after is not None and len(tokens) >= after:
            after = None
            await then()
    return tokens, text, logprobs


@pytest.mark.parametrize("engine", NEAR_TIE)
@pytest.mark.timeout(240)
async def test_the_answer_goes_on_where_it_stood(request, cluster, engine, models_dir):
    own, count = request.getfixturevalue(engine), TOKENS[engine]
    options = (*own, "--threads", "1", "--data-dir", str(models_dir))
    await asyncio.to_thread(cluster.worker, *options)
    async with open_control_plane(cluster.redis_url, heartbeat_timeout=15.0) as plane:
        whole, whole_text, logprobs = await read(await plane.owner.open(job(0, count)))
        assert len(whole) == count
        assert len(set(whole)) > count / 2  # it shows where it stands
        await asyncio.to_thread(cluster.worker, *options)
        killed = []

        async def kill() -> None:
            killed.extend(cluster.running().values())
            os.kill(cluster.pid_of(killed[0]), signal.SIGKILL)

        tokens, text, _ = await read(await plane.owner.open(job(1, count)), after=20, then=kill)
    assert killed
    assert len(tokens) == count
    split = next(
        (at for at, pair in enumerate(zip(whole, tokens, strict=True)) if len({*pair}) > 1), None
    )
    if split is None:
        assert text == whole_text
    else:
        assert split > 20, "tokens that were sent already have changed"
        (_, first), (_, second), *_ = logprobs[split].top
        assert first - second < NEAR_TIE[engine]
