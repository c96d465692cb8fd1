"""Models as they are on the hub, in the transformers engine."""

import asyncio
import json
import os
import shutil
import subprocess
import sys

import pytest
import pytest_asyncio
from transformers_engines import assert_same_up_to_near_ties, engine_on, generate_alone

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.asyncio(loop_scope="session")


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


async def test_a_hub_id_with_a_revision_is_found_in_the_hubs_cache(
    fresh_process, make_run, tiny_llama
):
    run = await make_run(engine_on(tiny_llama)).start()
    await run.engine.close()
    assert fresh_process[2:] == [256, run.engine.info.fingerprint]


async def test_the_event_loop_turns_while_libraries_and_model_load(fresh_process):
    longest, whole = fresh_process[:2]
    assert longest < whole / 3
