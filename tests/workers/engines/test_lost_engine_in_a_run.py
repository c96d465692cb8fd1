"""The recorder that the contract waits with: an engine that dies ends the wait at once."""

import asyncio
import os
import signal
import time

import pytest

from workers.engines.base import EngineDiedError
from workers.engines.fake import FakeEngine
from workers.engines.fake_faults import FaultyEngine

SOON = 30.0  # seconds; the contract's own bound is 250


class WithAProcess(FaultyEngine):
    """Its steps need a process of its own, as vLLM's do; a crash of it leaves ours alive."""

    async def start(self, sink):
        await super().start(sink)
        self.process = await asyncio.create_subprocess_exec("sleep", "60")

    def crash(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self._stall(None)

    async def lost(self):
        status = await self.process.wait()
        raise EngineDiedError(f"the process of the engine has ended with {status}")

    async def back(self):
        """It stays dead."""

    async def close(self):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await super().close()


class Away(FakeEngine):
    """Lost at once, and back after a moment, as a server is that is started again."""

    async def lost(self):
        return "nobody answers"

    async def back(self):
        await asyncio.sleep(0.01)


async def test_a_crash_in_the_middle_ends_the_wait_with_the_engines_reason(make_run):
    run = await make_run(WithAProcess(slots=2, context_length=256, tick=0)).start()
    name = run.add(await run.encode("[[crash 3]]"), max_tokens=50, ignore_eos=True)
    began = time.monotonic()
    with pytest.raises(EngineDiedError, match="has ended with -9"):
        await asyncio.wait_for(run.end(name), SOON)
    assert time.monotonic() - began < SOON
    assert len(run.tokens(name)) == 3, "it had begun"
    # And so do all that follow it, in a contract with 50 tests.
    with pytest.raises(EngineDiedError, match="has ended with -9"):
        await asyncio.wait_for(run.generate((1, 2), max_tokens=2), SOON)
    await run.engine.close()


async def test_a_process_that_is_killed_from_outside_ends_the_wait(make_run):
    run = await make_run(WithAProcess(slots=2, context_length=256, tick=3600)).start()
    waiting = asyncio.create_task(run.generate((1, 2), max_tokens=50, ignore_eos=True))
    await asyncio.sleep(0)
    run.engine.process.kill()
    with pytest.raises(EngineDiedError, match="has ended with -9"):
        await asyncio.wait_for(waiting, SOON)
    await run.engine.close()


async def test_an_engine_that_comes_back_is_waited_for(make_run):
    run = await make_run(Away(slots=2, context_length=256, tick=0.01)).start()
    result = await asyncio.wait_for(run.generate((1, 2), max_tokens=5, ignore_eos=True), SOON)
    assert len(result.tokens) == 5
    await run.engine.close()
