"""The mlx engine beside its contract: what it refuses, what it survives, how large it is."""

from __future__ import annotations

import pytest

from queueserve.errors import EngineError
from workers.engines.mlx import MlxEngine

pytest.importorskip("mlx_lm")

from workers.engines.mlx_loading import sizes

SHAPE = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "max_position_embeddings": 1000,
}


@pytest.fixture
async def run(make_run, tiny_llama):
    engine = MlxEngine(str(tiny_llama), slots=2, dtype="float32")
    yield await make_run(engine).start()
    await engine.close()


def test_slots_and_context_are_what_was_asked_for_or_what_the_memory_holds():
    assert sizes(SHAPE, weights=0, dtype="auto", slots=None, context=None) == (8, 1000)
    assert sizes(SHAPE, weights=0, dtype="auto", slots=3, context=50) == (3, 50)
    with pytest.raises(EngineError, match="was made for 1000"):
        sizes(SHAPE, weights=0, dtype="auto", slots=None, context=1001)
    vast = SHAPE | {"max_position_embeddings": 1 << 40}
    slots, context = sizes(vast, weights=0, dtype="auto", slots=None, context=None)
    assert slots == 1
    assert context < 1 << 40
    with pytest.raises(EngineError, match="no memory for a context"):
        sizes(vast, weights=0, dtype="auto", slots=None, context=1 << 39)


async def test_a_checkpoint_that_cannot_be_loaded_says_so(tmp_path, tiny_llama):
    with pytest.raises(EngineError, match="there is no directory"):
        await MlxEngine(str(tmp_path / "none")).start(lambda _: None)
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match="mlx-lm cannot load"):
        await MlxEngine(str(tmp_path)).start(lambda _: None)


async def test_an_unknown_dtype_is_refused(tiny_llama):
    with pytest.raises(EngineError, match="knows no --dtype int3"):
        await MlxEngine(str(tiny_llama), dtype="int3").start(lambda _: None)


async def test_a_batch_that_breaks_is_an_error_and_the_next_one_runs(run, monkeypatch):
    def broken():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run.engine._batcher._generator, "next", broken)
    lost = await run.generate((1, 2, 3), max_tokens=4)
    assert isinstance(lost.error, EngineError)
    assert "out of memory" in lost.error.message
    assert len((await run.generate((1, 2, 3), max_tokens=4, ignore_eos=True)).tokens) == 4
