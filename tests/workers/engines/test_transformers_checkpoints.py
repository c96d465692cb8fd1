"""GPTQ and AWQ checkpoints, written here: 4-bit numbers, each group of 32 with a scale and a zero.

What runs them, gptqmodel, is no part of `make install`; see docs/engines.md for what was run where.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest

from queueserve.errors import EngineError
from workers.engines.transformers import TransformersEngine

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.asyncio(loop_scope="session")

NEAR = 0.1  # log-probabilities: the kernel for CPUs computes in bfloat16
GROUP = 32
SETTINGS = {
    "gptq": {"quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": False, "sym": False},
    "awq": {"quant_method": "awq", "version": "gemm", "zero_point": True},
}
PROMPTS = [bytes([97 + number]) * (9 + 8 * number) for number in range(4)]


def packed(numbers, order=range(8)):
    """Eight numbers of four bits in an int32, in this order from its low end; along the columns."""
    parts = numbers.long().unflatten(1, (-1, 8))[:, :, list(order)]
    words = (parts << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()


def quantised(weight):
    """Numbers [in, out], zeros and scales [groups, out], and the weight [out, in] they mean."""
    columns = weight.T.unflatten(0, (-1, GROUP))
    low, high = columns.amin(1, keepdim=True), columns.amax(1, keepdim=True)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    numbers = (columns / scales + zeros).round().clamp(0, 15)
    meant = ((numbers - zeros) * scales).flatten(0, 1).T.contiguous()
    return numbers.flatten(0, 1), zeros[:, 0], scales[:, 0].half().contiguous(), meant


def stored(method, numbers, zeros, scales):
    if method == "awq":
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        return {
            "qweight": packed(numbers, order),
            "qzeros": packed(zeros, order),
            "scales": scales,
        }
    return {
        "qweight": packed(numbers.T).T.contiguous(),
        "qzeros": packed(zeros - 1),  # as its first version has it
        "scales": scales,
        "g_idx": (torch.arange(len(numbers)) // GROUP).int(),
    }


@pytest.fixture(scope="session")
def checkpoints(tiny_llama, tmp_path_factory):
    """The tiny Llama in both forms, and "plain": with the weights that they stand for."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    weights = {name: {} for name in ("plain", *SETTINGS)}
    for name, weight in load_file(tiny_llama / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            for held in weights.values():
                held[name] = weight
            continue
        *parts, meant = quantised(weight)
        weights["plain"][name] = meant
        for method in SETTINGS:
            for part, tensor in stored(method, *parts).items():
                weights[method][f"{name.removesuffix('weight')}{part}"] = tensor
    made = {}
    for name, held in weights.items():
        made[name] = tmp_path_factory.mktemp("checkpoints") / name
        shutil.copytree(tiny_llama, made[name])
        config = json.loads((made[name] / "config.json").read_text())
        if name in SETTINGS:
            config["quantization_config"] = {"bits": 4, "group_size": GROUP} | SETTINGS[name]
        (made[name] / "config.json").write_text(json.dumps(config))
        save_file(held, made[name] / "model.safetensors", metadata={"format": "pt"})
    return made


def engine_on(path):
    return TransformersEngine(str(path), slots=4, context_length=128, dtype="float32")


@pytest.mark.skipif(not find_spec("gptqmodel"), reason="pip install gptqmodel optimum")
@pytest.mark.parametrize("method", SETTINGS)
async def test_the_tokens_are_those_of_the_weights_that_the_numbers_stand_for(
    make_run, checkpoints, method
):
    answers = {}
    for name in ("plain", method):
        run = await make_run(engine_on(checkpoints[name])).start()
        own = {"max_tokens": 12, "ignore_eos": True, "logprobs": 2}
        names = [run.add(prompt, **own) for prompt in PROMPTS]
        answers[name] = [await run.end(name) for name in names]
        kind = type(run.engine._batcher._model.model.layers[0].mlp.up_proj)
        assert (kind is torch.nn.Linear) == (name == "plain")
        await run.engine.close()
    for result, other in zip(answers[method], answers["plain"], strict=True):
        assert_same_up_to_near_ties(result, other)


def assert_same_up_to_near_ties(result, other):
    for at, (one, its) in enumerate(zip(result.logprobs, other.logprobs, strict=True)):
        if result.tokens[at] != other.tokens[at]:
            (_, first), (runner_up, second) = one.top
            assert other.tokens[at] == runner_up
            assert first - second < NEAR
            return
        assert one.logprob == pytest.approx(its.logprob, abs=NEAR)


@pytest.mark.skipif(bool(find_spec("gptqmodel")), reason="what runs them is installed")
@pytest.mark.parametrize("method", SETTINGS)
async def test_without_the_library_they_are_refused_with_what_to_install(checkpoints, method):
    engine = engine_on(checkpoints[method])
    with pytest.raises(EngineError, match=r"pip install (gptqmodel|optimum)"):
        await engine.start(lambda _: None)
    await engine.close()
