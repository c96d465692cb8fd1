"""SGLang's processes: how they fail, and how they end. Runs where SGLang is."""

import asyncio
import gc
import os
import shutil
import signal
from pathlib import Path

import pytest

from queueserve.errors import EngineError
from workers.engines.base import EngineDiedError, Fallible

pytest.importorskip("sglang")
psutil = pytest.importorskip("psutil")
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


@pytest.fixture
def model(random_llama):
    return random_llama(2, width=256)  # the smallest heads that kernels for GPUs know


def schedulers():
    """Those of this process; one is called so once it has imported what it needs."""
    return [
        child for child in psutil.Process().children(recursive=True) if "scheduler" in name(child)
    ]


def name(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


async def until(condition, seconds=300):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # processes have no event for it
            await asyncio.sleep(0.05)


async def test_a_corrupt_checkpoint_is_an_error_and_leaves_nothing(make_sglang, model, tmp_path):
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    engine = make_sglang(model=broken)
    with pytest.raises(EngineError, match="SGLang cannot run"):
        await engine.start(lambda _: None)
    await engine.close()
    await until(lambda: not schedulers(), 30)
    await asyncio.wait_for(asyncio.to_thread(gc.collect), 30)  # what is left of it holds nobody up


async def test_what_is_closed_while_it_loads_ends(make_sglang, model):
    engine = make_sglang(model=model)
    starting = asyncio.create_task(engine.start(lambda _: None))
    await until(schedulers)
    starting.cancel()
    await asyncio.wait_for(engine.close(), 10)
    await until(lambda: not schedulers() and not engine._thread.is_alive(), 60)
    await asyncio.wait_for(asyncio.to_thread(gc.collect), 30)


async def test_a_dead_scheduler_is_told_and_gives_nothing_more(make_sglang, make_run, model):
    run = await make_run(make_sglang(model=model, slots=2)).start()
    engine = run.engine
    assert isinstance(engine, Fallible)
    await asyncio.wait_for(engine.back(), 1)
    name = run.add(await run.encode("once"), max_tokens=200, ignore_eos=True)
    await run.until(lambda: len(run.tokens(name)) >= 3)
    (scheduler,) = schedulers()
    os.kill(scheduler.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="ended"):
        await asyncio.wait_for(engine.lost(), 30)
    assert not run.ended(name)  # its jobs go on elsewhere
    await asyncio.wait_for(engine.close(), 30)
    assert not schedulers()
