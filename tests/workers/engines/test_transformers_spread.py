"""A model over two devices, which are pretended ones; see `pretended_devices`."""

from __future__ import annotations

import pytest
import pytest_asyncio

from workers.engines.transformers import TransformersEngine

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretended_devices import KIND, made_here_and_moved, within  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="session")

FIRST, SECOND = torch.device(KIND, 0), torch.device(KIND, 1)
PROMPTS = [bytes([97 + number]) * (20 + 15 * number) for number in range(4)]


def engine_on(path):
    return TransformersEngine(str(path), slots=4, context_length=128, dtype="float32")


@pytest.fixture(scope="session")
def small_llama(random_llama):
    return random_llama(4)


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory, write_model):
    """Layers of full attention and layers with a window, on both devices."""
    torch.manual_seed(5)
    shape = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,
        "use_sliding_window": True,
        "sliding_window": 24,
        "layer_types": ["full_attention", "sliding_attention"] * 2 + ["sliding_attention"],
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**shape))
    return write_model(tmp_path_factory.mktemp("hybrid"), model)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def expected(make_run, small_llama, hybrid):
    """What each model answers on the CPU alone."""
    return {
        "small_llama": await answers_of(make_run, small_llama),
        "hybrid": await answers_of(make_run, hybrid),
    }


async def answers_of(make_run, path):
    run = await make_run(engine_on(path)).start()
    try:
        return await answers(run)
    finally:
        await run.engine.close()


async def answers(run):
    """Of sequences that join one another: the first two greedy, the others drawn."""
    own = {"max_tokens": 10, "ignore_eos": True, "logprobs": 2}
    drawn = {"temperature": 0.9, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.2}
    early = [run.add(prompt, **own) for prompt in PROMPTS[:2]]
    await run.until(lambda: len(run.tokens(early[0])) >= 3)
    late = [run.add(prompt, prompt_logprobs=1, **own, **drawn) for prompt in PROMPTS[2:]]
    return [await run.end(name) for name in early + late]


@pytest.fixture(scope="module")
def two_devices(expected):
    """Have what is loaded dispatched over two devices: the first two layers on the first one."""
    from accelerate import dispatch_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from workers.engines import transformers_loading  # noqa: PLC0415
    from workers.engines.transformers_batching import Batcher  # noqa: PLC0415

    load = AutoModelForCausalLM.from_pretrained

    def load_and_dispatch(*args, **kwargs):
        model, info = load(*args, **kwargs | {"device_map": {"": "cpu"}})
        parts = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST}
        parts |= {f"model.layers.{at}": FIRST for at in range(2)}
        parts |= {f"model.layers.{at}": SECOND for at in range(2, len(model.model.layers))}
        parts |= {"model.norm": SECOND, "lm_head": SECOND}
        skipped = model._skip_keys_device_placement
        return dispatch_model(model, parts, main_device=FIRST, skip_keys=skipped), info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", load_and_dispatch)
        patch.setattr(transformers_loading, "device_of", lambda _: FIRST)
        patch.setattr(torch, "tensor", made_here_and_moved(torch.tensor))
        for part, name in ((TransformersEngine, "_load"), (Batcher, "_run")):
            patch.setattr(part, name, within(getattr(part, name)))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def spread(make_run, small_llama, two_devices):
    run = await make_run(engine_on(small_llama)).start()
    yield run
    await run.engine.close()


def cache_of(run):
    return run.engine._batcher._manager.batch_processor.cache


async def test_the_tokens_are_those_of_one_device(spread, expected):
    assert_same(await answers(spread), expected["small_llama"])


async def test_so_are_those_of_layers_with_a_window(make_run, hybrid, expected, two_devices):
    assert_same(await answers_of(make_run, hybrid), expected["hybrid"])


def assert_same(given, expected):
    assert [result.error for result in given] == [None] * len(PROMPTS)
    assert [result.tokens for result in given] == [result.tokens for result in expected]
    for result, other in zip(given, expected, strict=True):
        for own, its in zip(logprobs_of(result), logprobs_of(other), strict=True):
            assert own == pytest.approx(its, abs=1e-3)


def logprobs_of(result):
    return [one.logprob for one in (*(result.prompt_logprobs or ()), *result.logprobs)]


async def test_each_layer_has_its_keys_and_values_beside_its_weights(spread):
    cache = cache_of(spread)
    (allocator,) = cache.cache_allocators.values()
    assert cache.cache_tensor.device.type == "meta"
    held = 0
    for layer, device in enumerate((FIRST, FIRST, SECOND, SECOND)):
        for part in allocator._kv_token_views[layer]:
            assert part.device == device
            held += part.numel() * part.dtype.itemsize
    assert held == cache.cache_tensor.numel()  # not more than one tensor for all would take


async def test_a_prompt_seen_before_is_found_in_the_cache(spread):
    prompt = bytes(range(32, 107))
    first = await spread.generate(prompt, max_tokens=3, ignore_eos=True)
    again = await spread.generate(prompt, max_tokens=3, ignore_eos=True)
    assert (first.cached_tokens, again.cached_tokens) == (0, 64)  # whole pages of 32
    assert again.tokens == first.tokens


async def test_after_aborts_the_memory_is_free_and_the_others_end(spread):
    names = [spread.add(prompt, max_tokens=12, ignore_eos=True) for prompt in PROMPTS]
    await spread.until(lambda: all(spread.tokens(name) for name in names))
    for name in names[::2]:
        spread.engine.abort(name)
    ended = [await spread.end(name) for name in names[1::2]]
    assert [len(result.tokens) for result in ended] == [12, 12]
    cache = cache_of(spread)
    cache.evict_cached_blocks()
    cache.pool.try_to_free_sectors()
    assert cache.compute_free_capacity() == 1.0


async def test_what_a_step_copied_is_not_kept(spread):
    await spread.generate(PROMPTS[0], max_tokens=4, ignore_eos=True)
    (forget,) = spread.engine._batcher._model._forward_hooks.values()
    assert forget.__self__._made == {}
