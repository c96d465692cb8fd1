import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref

import pytest
import pytest_asyncio

from queueserve.errors import EngineError
from workers.engines import conversion
from workers.engines.base import EngineDiedError
from workers.engines.transformers import TransformersEngine

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.asyncio(loop_scope="session")

NEAR = 1e-3  # log-probabilities this close may change places
PROMPT = tuple(b"once upon a time")


def engine_on(path, **options):
    return TransformersEngine(
        str(path), **({"slots": 4, "context_length": 128, "dtype": "float32"} | options)
    )


@pytest_asyncio.fixture(loop_scope="session")
async def tiny(make_run, tiny_llama):
    run = await make_run(engine_on(tiny_llama)).start()
    yield run
    await run.engine.close()


async def refusal(path, **options):
    engine = engine_on(path, **options)
    with pytest.raises(EngineError) as caught:
        await engine.start(lambda _: None)
    await engine.close()
    return caught.value.message


def cache_of(run):
    return run.engine._batcher._manager.batch_processor.cache


async def idle(run):
    """Wait until the manager has nothing left to do."""
    scheduler = run.engine._batcher._manager.batch_processor.scheduler
    async with asyncio.timeout(20):
        while scheduler.has_pending_requests() or scheduler._requests_to_cancel:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# The tokens are those of the model.


async def test_a_batch_that_sequences_join_late_gives_what_generate_gives_one_by_one(
    transformers_run,
):
    run = transformers_run
    texts = (
        "Hello",
        "The three primary colours are",
        "def fibonacci(n):\n    ",
        "Water boils at",
        "In the year 1969, the first people walked on the surface of the",
        "Roses are red, violets are",
        "To make tea, first boil the water. " * 4 + "Then",
        "A, B, C, D,",
    )
    prompts = [await run.encode(text) for text in texts]
    own = {"max_tokens": 12, "ignore_eos": True, "logprobs": 2}
    early = [run.add(prompt, **own) for prompt in prompts[:4]]
    await run.until(lambda: len(run.tokens(early[0])) >= 3)
    late = [run.add(prompt, **own) for prompt in prompts[4:]]
    results = [await run.end(name) for name in early + late]
    together = max(len({output.id for output in call}) for call in run.calls)
    assert together == 8
    for prompt, result in zip(prompts, results, strict=True):
        expected = await asyncio.to_thread(generate_alone, run, prompt)
        assert_same_up_to_near_ties(result, expected)


def generate_alone(run, prompt):
    model = run.engine._batcher._model
    ids = torch.tensor([prompt])
    with torch.no_grad():
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )
    return tokens[0, len(prompt) :].tolist()


def assert_same_up_to_near_ties(result, tokens):
    for at, (token, other) in enumerate(zip(result.tokens, tokens, strict=True)):
        if token != other:
            (_, first), (runner_up, second) = result.logprobs[at].top
            assert other == runner_up
            assert first - second < NEAR
            return


async def test_logprobs_are_the_models_own(tiny):
    result = await tiny.generate(
        PROMPT, max_tokens=3, logprobs=2, temperature=1.0, seed=1, ignore_eos=True
    )
    ids = torch.tensor([PROMPT + result.tokens])
    with torch.no_grad():
        expected = tiny.engine._batcher._model(ids).logits[0].log_softmax(-1)
    for at, (token, own) in enumerate(zip(result.tokens, result.logprobs, strict=True)):
        row = expected[len(PROMPT) - 1 + at]
        assert own.logprob == pytest.approx(row[token].item(), abs=1e-3)
        assert [id_ for id_, _ in own.top] == row.topk(2).indices.tolist()


async def test_with_a_cache_for_less_than_all_slots_the_tokens_are_the_same(
    tiny, make_run, tiny_llama, monkeypatch
):
    prompts = [bytes([97 + number]) * 40 for number in range(4)]
    own = {"max_tokens": 80, "ignore_eos": True, "temperature": 0.8, "seed": 3, "logprobs": 2}
    own["frequency_penalty"] = 0.1
    expected = await asyncio.gather(*(tiny.generate(prompt, **own) for prompt in prompts))
    monkeypatch.setattr("workers.engines.transformers_memory._CPU_CACHE", 1)
    run = await make_run(engine_on(tiny_llama)).start()
    try:
        assert cache_of(run).num_blocks == 5  # one sequence of 128 tokens, and a page
        results = await asyncio.gather(*(run.generate(prompt, **own) for prompt in prompts))
    finally:
        await run.engine.close()
    assert [result.tokens for result in results] == [result.tokens for result in expected]
    assert [len(result.logprobs) for result in results] == [80] * 4


async def test_a_prompt_seen_before_is_found_in_the_cache(tiny):
    prompt = bytes(range(32, 107))
    first = await tiny.generate(prompt, max_tokens=2, ignore_eos=True)
    again = await tiny.generate(prompt, max_tokens=2, ignore_eos=True)
    assert (first.cached_tokens, again.cached_tokens) == (0, 64)  # whole pages of 32
    assert again.tokens == first.tokens


# Sequences come and go.


async def test_after_many_aborts_at_any_moment_all_memory_is_free(tiny):
    names = []
    for number in range(40):
        names.append(tiny.add(bytes([number]) * 60, max_tokens=50, ignore_eos=True))
        if number % 3:
            tiny.engine.abort(names[-(number % 5) - 1 :][0])
        if number % 4 == 0:
            await asyncio.sleep(0.01)
    for name in names[::2]:
        tiny.engine.abort(name)
    await asyncio.sleep(0.02)
    for name in names:
        tiny.engine.abort(name)
    given = [len(tiny.outputs(name)) for name in names]
    await idle(tiny)
    await asyncio.sleep(0.02)
    assert [len(tiny.outputs(name)) for name in names] == given
    assert not tiny.engine._batcher._requests
    cache = cache_of(tiny)
    cache.evict_cached_blocks()
    cache.pool.try_to_free_sectors()
    assert cache.compute_free_capacity() == 1.0


async def test_a_cancel_that_overtakes_its_sequence_is_made_good(tiny):
    name = tiny.add(PROMPT, max_tokens=100, ignore_eos=True)
    key = tiny.engine._live.pop(name)
    # As if the manager had looked for new sequences just before, and for cancels just after.
    del tiny.engine._batcher._requests[key]
    await asyncio.sleep(0.05)
    await idle(tiny)
    assert tiny.outputs(name) == []
    assert tiny.engine.steps < 60


async def test_closing_stops_what_runs_and_can_be_done_twice(make_run, tiny_llama):
    run = await make_run(engine_on(tiny_llama)).start()
    name = run.add(PROMPT, max_tokens=100, ignore_eos=True)
    await run.until(lambda: run.tokens(name))
    thread = run.engine._batcher._thread
    await run.engine.close()
    assert not thread.is_alive()
    given = len(run.outputs(name))
    await run.engine.close()
    await asyncio.sleep(0.05)
    assert len(run.outputs(name)) == given
    assert not run.ended(name)


async def test_closing_while_the_model_loads_does_not_wait_for_it(tiny_llama):
    before = threading.enumerate()
    engine = engine_on(tiny_llama)
    starting = asyncio.create_task(engine.start(lambda _: None))
    await asyncio.sleep(0.01)
    starting.cancel()
    await engine.close()
    (loading,) = (thread for thread in threading.enumerate() if thread.name == "loading")
    await asyncio.to_thread(loading.join)
    new = set(threading.enumerate()).difference(before)
    assert "transformers" not in {thread.name for thread in new}
    assert engine.steps == 1  # it did load


async def test_closing_an_engine_that_never_started_does_nothing(tiny_llama):
    await engine_on(tiny_llama).close()


# What fails is said.


@pytest.fixture
def no_logs():
    """Log records that pytest keeps hold the traceback, and that the cache."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


class Breaks:
    """Makes the model raise, a number of times."""

    def __init__(self, run, times):
        self.times = times
        self._hook = run.engine._batcher._model.register_forward_pre_hook(self)

    def __call__(self, _module, _inputs):
        if self.times:
            self.times -= 1
            raise RuntimeError("out of imagination")


async def test_when_the_model_breaks_all_running_sequences_hear_of_it_and_later_ones_run(
    tiny, no_logs
):
    expected = await tiny.generate(PROMPT, max_tokens=4, ignore_eos=True)
    names = [tiny.add(PROMPT, max_tokens=60, ignore_eos=True) for _ in range(6)]
    await tiny.until(lambda: tiny.tokens(names[0]))
    cache = weakref.ref(cache_of(tiny))
    Breaks(tiny, times=1)
    for result in await asyncio.gather(*map(tiny.end, names)):
        assert isinstance(result.error, EngineError)
        assert "out of imagination" in result.error.message
    assert [len(call) for call in tiny.calls][-1] == 6  # in one call
    later = await tiny.generate(PROMPT, max_tokens=4, ignore_eos=True)
    assert later.tokens == expected.tokens
    assert cache() is None  # two would not fit on a GPU


async def test_an_engine_that_stays_broken_says_so_at_once(tiny, no_logs):
    Breaks(tiny, times=1_000_000)
    result = await tiny.generate(PROMPT, max_tokens=4)
    assert "out of imagination" in result.error.message
    async with asyncio.timeout(20):
        with pytest.raises(EngineDiedError, match="out of imagination"):
            await tiny.engine.lost()


async def test_a_library_that_is_missing_is_named_with_its_extra(tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'queueserve[transformers]'" in await refusal(tiny_llama)


async def test_a_path_without_a_model_is_refused(tmp_path):
    assert "there is no directory" in await refusal(tmp_path / "nothing")
    assert "cannot load" in await refusal(tmp_path)


async def test_a_damaged_checkpoint_is_refused_with_the_reason(tiny_llama, tmp_path):
    damaged = shutil.copytree(tiny_llama, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    message = await refusal(damaged)
    assert str(damaged) in message
    assert "header" in message.lower() or "incomplete" in message.lower()


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json"], ids=lambda file: file
)
async def test_garbage_in_a_checkpoint_is_refused(tiny_llama, tmp_path, file):
    damaged = shutil.copytree(tiny_llama, tmp_path / "damaged")
    (damaged / file).write_bytes(bytes(at * 31 % 251 for at in range(5000)))
    assert f"cannot load {damaged}: " in await refusal(damaged)


async def test_a_checkpoint_that_lacks_weights_is_refused(tiny_llama, tmp_path):
    deeper = shutil.copytree(tiny_llama, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks 9 of the model's weights" in await refusal(deeper)


async def test_code_that_comes_with_a_model_is_not_run(tmp_path, tiny_llama):
    model = shutil.copytree(tiny_llama, tmp_path / "own-code")
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | own))
    (model / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "cannot load" in await refusal(model)
    assert not (tmp_path / "ran").exists()


async def test_a_model_whose_attention_cannot_be_paged_is_refused(tmp_path, write_model):
    from transformers import BloomConfig, BloomForCausalLM  # noqa: PLC0415

    config = BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=4)
    write_model(tmp_path, BloomForCausalLM(config))
    assert "cannot batch a BloomForCausalLM" in await refusal(tmp_path)


async def test_windows_of_attention_are_batched_as_well(make_run, tmp_path, write_model):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig  # noqa: PLC0415

    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=16,
        initializer_range=0.4,
    )
    write_model(tmp_path, Gemma3ForCausalLM(config))
    run = await make_run(engine_on(tmp_path)).start()
    prompts = [b"a window of sixteen tokens", b"b" * 40, b"c"]
    own = {"max_tokens": 12, "ignore_eos": True, "logprobs": 2}
    results = await asyncio.gather(*(run.generate(prompt, **own) for prompt in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        assert_same_up_to_near_ties(result, generate_alone(run, tuple(prompt)))
    await run.engine.close()


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"context_length": 257}, "the model has 256 positions"),
        ({"dtype": "int3"}, "int3"),
        ({"device": "cuda:9"}, "torch finds no such device"),
    ],
    ids=["context", "dtype", "device"],
)
async def test_an_option_that_cannot_be_had_is_refused(tiny_llama, options, reason):
    assert reason in await refusal(tiny_llama, **options)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"device": "cuda:9"}, "--device cuda:9: torch finds no such device"),
        ({"device": "gpu"}, "knows no device 'gpu'"),
        ({"num_gpus": 2, "device": "cpu"}, "sharing a model is for GPUs"),
        ({"cpu_offloading": True, "device": "cpu"}, "offloading is for GPUs"),
    ],
)
async def test_a_device_that_is_not_here_is_told_before_a_file_is_converted(
    tmp_path, monkeypatch, smollm2_gguf, options, reason
):
    begun = []

    def convert(*paths):
        begun.append(paths)
        raise EngineError("it was converted")

    monkeypatch.setattr(conversion, "convert_gguf", convert)
    assert reason in await refusal(smollm2_gguf, cache_dir=tmp_path, **options)
    assert not begun
    assert "it was converted" in await refusal(smollm2_gguf, cache_dir=tmp_path, device="cpu")


async def test_a_context_that_the_memory_cannot_hold_is_refused_or_shortened(
    make_run, tiny_llama, control_groups
):
    # 128 bytes of cache a token: 192 tokens in a quarter of this, of which a page is set aside.
    control_groups(["0::/pod/box"], {"pod/memory.max": 4 * 192 * 128, "pod/box/memory.max": "max"})
    assert "--context-length" in await refusal(tiny_llama, context_length=200)
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


# Models as they are on the hub.


async def test_a_model_of_vicunas_layout_loads_and_its_text_comes_back(make_run, vicuna_like):
    run = await make_run(engine_on(vicuna_like, context_length=None)).start()
    try:
        assert run.engine.info.context_length == 512
        assert run.engine.tokenizer.chat_template is None
        prompt = await run.engine.tokenizer.encode("USER: Hello! ASSISTANT:", add_special=True)
        result = await run.generate(prompt, max_tokens=20, ignore_eos=True)
        assert len(result.tokens) == 20
        answer = await run.encode("Hi, how can I help? 🎉")
        assert run.text(answer) == " Hi, how can I help? 🎉"
        ended = await run.generate(prompt, max_tokens=5, logit_bias={2: 100.0})
        assert (ended.tokens, ended.finish) == ((), "stop")
    finally:
        await run.engine.close()


async def test_float16_weights_are_not_computed_in_float16_on_a_cpu(make_run, vicuna_like):
    run = await make_run(engine_on(vicuna_like, dtype="auto")).start()
    assert run.engine._batcher._model.dtype in {torch.bfloat16, torch.float32}
    await run.engine.close()


async def test_the_smollm2_of_the_package_index_chats(transformers_run):
    run = transformers_run
    assert "<|im_start|>" in run.engine.tokenizer.chat_template
    prompt = await run.encode(
        "<|im_start|>user\nWhat is the capital of France? Answer in one sentence.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    result = await run.generate(prompt, max_tokens=20)
    assert "Paris" in run.text(result.tokens)
    assert result.finish == "stop"


async def test_the_fingerprint_is_of_the_files_and_the_data_type(make_run, tiny_llama, tmp_path):
    async def fingerprint(path, **options):
        run = await make_run(engine_on(path, **options)).start()
        await run.engine.close()
        return run.engine.info.fingerprint

    here = await fingerprint(tiny_llama)
    copy = shutil.copytree(tiny_llama, tmp_path / "elsewhere")
    (copy / "README.md").write_text("not what decides the tokens")
    assert await fingerprint(copy) == here
    assert await fingerprint(copy, dtype="bfloat16") != here
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert await fingerprint(copy) != here


FRESH = """
import asyncio, json, time
from workers.engines.transformers import TransformersEngine

async def main():
    longest, running = 0.0, True

    async def tick():
        nonlocal longest
        last = time.perf_counter()
        while running:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticker = asyncio.create_task(tick())
    started = time.perf_counter()
    engine = TransformersEngine("someone/tiny", slots=2, dtype="float32", revision="v1")
    await engine.start(lambda _: None)
    whole = time.perf_counter() - started
    print(json.dumps([longest, whole, engine.info.context_length, engine.info.fingerprint]))
    running = False
    await ticker
    await engine.close()

asyncio.run(main())
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fresh_process(tiny_llama, tmp_path_factory):
    """What a process reports that has imported nothing yet, and finds the model by its hub id."""
    home = tmp_path_factory.mktemp("hub")
    stored = home / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_llama, stored / "snapshots" / "0123abc")
    (stored / "refs").mkdir()
    (stored / "refs" / "v1").write_text("0123abc")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FRESH],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )
    return json.loads(done.stdout)


async def test_a_hub_id_with_a_revision_is_found_in_the_hubs_cache(fresh_process, tiny):
    assert fresh_process[2:] == [256, tiny.engine.info.fingerprint]


async def test_the_event_loop_turns_while_libraries_and_model_load(fresh_process):
    longest, whole = fresh_process[:2]
    assert longest < whole / 3


async def test_the_event_loop_turns_while_a_long_prompt_is_read(transformers_run):
    run = transformers_run
    name = run.add(await run.encode("word " * 400), max_tokens=1, ignore_eos=True)
    started = last = time.perf_counter()
    longest = 0.0
    while not run.ended(name):
        await asyncio.sleep(0.005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < (last - started) / 3
