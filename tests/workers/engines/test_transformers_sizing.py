"""How many sequences, and of what length, the transformers engine takes on a CPU."""

import pytest
from transformers_engines import engine_on, refusal_of

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_context_that_the_memory_cannot_hold_is_refused_or_shortened(
    make_run, tiny_llama, control_groups
):
    # 128 bytes of cache a token: 192 tokens in a quarter of this, of which a page is set aside.
    control_groups(["0::/pod/box"], {"pod/memory.max": 4 * 192 * 128, "pod/box/memory.max": "max"})
    assert "--context-length" in await refusal_of(engine_on(tiny_llama, context_length=200))
    run = await make_run(engine_on(tiny_llama, context_length=None)).start()
    assert run.engine.info.context_length == 64
    await run.engine.close()


@pytest.mark.parametrize("context, slots", [(32, 3), (128, 1)])
async def test_slots_are_no_more_than_the_cache_has_room_for(
    make_run, tiny_llama, control_groups, context, slots
):
    control_groups(["0::/"], {"memory.max": 4 * 384 * 128})
    options = {"context_length": context, "slots": None}
    run = await make_run(engine_on(tiny_llama, **options)).start()
    assert run.engine.info.slots == slots
    await run.engine.close()


@pytest.mark.parametrize("threads, slots", [(1, 8), (3, 24), (9, 32)])
async def test_slots_are_what_the_threads_compute_well_together(
    make_run, tiny_llama, monkeypatch, threads, slots
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))  # else the engine sets its own
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        run = await make_run(engine_on(tiny_llama, slots=None)).start()
        assert run.engine.info.slots == slots
        await run.engine.close()
    finally:
        torch.set_num_threads(before)
