"""The llama_cpp engine's life: what it says of itself, how it starts, fails to, and ends."""

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import pytest_asyncio

from queueserve.errors import EngineError
from workers.adapters import EngineOptions, ModelSource, make_engine
from workers.engines.llama_cpp import LlamaCppEngine

if importlib.util.find_spec("xllamacpp") is None:  # importing it here would fix OpenMP's settings
    pytest.skip("xllamacpp is not installed", allow_module_level=True)
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def run(make_run, smollm2_gguf):
    engine = LlamaCppEngine(smollm2_gguf, slots=1, context_length=512)
    yield await make_run(engine).start()
    await engine.close()


@pytest_asyncio.fixture(loop_scope="session")
async def story(run):
    return await run.encode("Once upon a time there was a")


async def test_what_it_says_of_itself(run, smollm2_gguf, tmp_path):
    info = run.engine.info
    assert (info.engine, info.slots, info.context_length) == ("llama_cpp", 1, 512)
    assert info.version.startswith("2026.")
    other = tmp_path / smollm2_gguf.name
    shutil.copyfile(smollm2_gguf, other)
    same = LlamaCppEngine(str(other), slots=1, context_length=256)
    await same.start(lambda outputs: None)
    await same.close()
    assert same.info.fingerprint == info.fingerprint


@pytest.mark.parametrize("layers", [0, 7, None])
async def test_the_gpu_gets_the_layers_that_are_asked_for(monkeypatch, smollm2_gguf, layers):
    import xllamacpp  # noqa: PLC0415

    passed = []

    def refuse(params):
        passed.append(params.n_gpu_layers)
        raise RuntimeError

    monkeypatch.setattr(xllamacpp, "Server", refuse)
    source = ModelSource(path=str(smollm2_gguf), origin="", engine="llama_cpp", name="m")
    engine = make_engine(source, EngineOptions(gpu_layers=layers))
    with pytest.raises(EngineError, match="cannot load"):
        await engine.start(lambda outputs: None)
    await engine.close()
    default = xllamacpp.CommonParams().n_gpu_layers
    assert passed == [default if layers is None else layers]


async def test_two_engines_in_one_process(make_run, run, smollm2_gguf, story):
    second = await make_run(LlamaCppEngine(smollm2_gguf, slots=1, context_length=256)).start()
    both = await asyncio.gather(
        run.generate(story, max_tokens=4, ignore_eos=True),
        second.generate(story, max_tokens=4, ignore_eos=True),
    )
    assert [len(result.tokens) for result in both] == [4, 4]
    await second.engine.close()
    assert (await run.generate(story, max_tokens=4, ignore_eos=True)).finish == "length"


async def test_close_stops_what_runs_and_may_be_called_twice(make_run, smollm2_gguf, story):
    run = await make_run(LlamaCppEngine(smollm2_gguf, slots=1, context_length=2048)).start()
    names = [run.add(story, max_tokens=1000, ignore_eos=True) for _ in range(2)]
    await run.until(lambda: run.tokens(names[0]))
    await asyncio.gather(run.engine.close(), run.engine.close())
    given = list(run.calls)
    await asyncio.sleep(0.05)
    assert run.calls == given
    late = await run.generate(story)
    assert isinstance(late.error, EngineError)
    assert "not running" in late.error.message


async def test_close_before_start_does_nothing(smollm2_gguf):
    await LlamaCppEngine(smollm2_gguf).close()


def damaged(path, source):
    with source.open("rb") as file:
        path.write_bytes(file.read(8 << 20))


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path, source: None, "cannot read the model file .*No such file"),
        (lambda path, source: path.write_text("hello"), "is not a GGUF model file"),
        (damaged, "llama.cpp cannot load .*damaged"),
    ],
)
async def test_a_bad_file_is_an_error_that_says_so(tmp_path, smollm2_gguf, make, reason):
    path = tmp_path / "model.gguf"
    make(path, smollm2_gguf)
    engine = LlamaCppEngine(path, slots=1, context_length=256)
    with pytest.raises(EngineError, match=reason):
        await engine.start(lambda outputs: None)
    await engine.close()


async def test_too_long_a_context_is_refused(smollm2_gguf):
    with pytest.raises(EngineError, match="trained for 8192"):
        await LlamaCppEngine(smollm2_gguf, context_length=8193).start(lambda outputs: None)


async def test_without_the_library_the_error_says_what_to_install(smollm2_gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EngineError, match=r"pip install 'queueserve\[llama-cpp\]'"):
        await LlamaCppEngine(smollm2_gguf).start(lambda outputs: None)


async def test_a_library_that_cannot_be_loaded_is_told_with_the_reason(smollm2_gguf, monkeypatch):
    def fail(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(EngineError, match=r"libgomp.so.1.*apt-get install libgomp1"):
        await LlamaCppEngine(smollm2_gguf).start(lambda outputs: None)


@pytest.mark.parametrize("running", [0, 3])
async def test_python_may_exit_without_close(smollm2_gguf, running):
    script = f"""
        import asyncio
        from queueserve.protocol import Sampling
        from workers.engines.base import Sequence
        from workers.engines.llama_cpp import LlamaCppEngine

        async def main():
            engine = LlamaCppEngine({str(smollm2_gguf)!r}, slots=2, context_length=2048)
            seen = asyncio.Event()
            await engine.start(lambda outputs: seen.set())
            for index in range({running}):
                sampling = Sampling(max_tokens=2000, ignore_eos=True)
                engine.add(Sequence(id=str(index), prompt=(1, 2, 3), sampling=sampling))
            if {running}:
                await seen.wait()
            print("leaving")

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out, err) == (0, b"leaving\n", b"")
