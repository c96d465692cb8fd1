"""What every engine must do: the engines. An adapter is done when the tests beside this pass."""

import dataclasses
from importlib.util import find_spec

import pytest
import pytest_asyncio
from gguf_copies import write_in_float32

from workers.engines.fake import FakeEngine
from workers.engines.fake_faults import FaultyEngine

# Two tokens whose log-probabilities are this close may change places.
NEAR = 1e-3  # in float32
NEAR_ON_A_GPU = 0.1  # vLLM and SGLang in bfloat16, llama.cpp with a float16 cache


@dataclasses.dataclass
class Subject:
    """A started engine, and what the contract leaves to it."""

    run: object
    seeds: bool = True  # a draw repeats with its seed
    scores_first: bool = True  # log-probabilities are taken before biases
    truncates: bool = True  # top_k, top_p and min_p bear on the draw
    cuts_by_min_p: bool = True  # else it refuses min_p
    repeats_draws: bool = True  # a drawn sequence goes on exactly elsewhere, not a greedy one only
    draws_alike_beside_others: bool = True  # else the shape of a batch shows in what is drawn
    continues_constraints: bool = True  # also in the middle of an output
    binds_length: bool = True  # takes min_tokens beside a constraint
    repeats_itself: bool = True  # says again what a prompt says again, without a bias
    near: float = NEAR

    def assert_same(self, expected, result):
        """Up to a near tie; `expected` must have the logprobs of its most likely tokens."""
        for at, (token, other) in enumerate(zip(expected.tokens, result.tokens, strict=False)):
            if token != other:
                likely = dict(expected.logprobs[at].top)
                assert other in likely, f"token {at}"
                assert max(likely.values()) - likely[other] < self.near, f"token {at}"
                return
        assert len(expected.tokens) == len(result.tokens)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fake(make_run):
    engine = FakeEngine(slots=4, context_length=256, tick=0)
    yield Subject(await make_run(engine).start(), truncates=False)
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def faulty(make_run):
    engine = FaultyEngine(slots=4, context_length=256, tick=0)
    yield Subject(await make_run(engine).start(), truncates=False)
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def llama_cpp(make_run, smollm2_gguf, tmp_path_factory):
    """On a GPU with weights in float32: its kernels for quantised ones round by the batch's shape.

    By more than a near tie, so nothing could be said of ours. `test_llama_cpp.py` has them.
    """
    from workers.engines.llama_cpp import LlamaCppEngine  # noqa: PLC0415

    engine = LlamaCppEngine(smollm2_gguf, slots=4, context_length=256)
    run = await make_run(engine).start()
    # The wheel is built for CPUs, whatever the machine has, so it is the engine that knows.
    on_gpu = engine._loaded.server.on_gpu
    if on_gpu:
        await engine.close()
        path = tmp_path_factory.mktemp("float32") / "smollm2.gguf"
        write_in_float32(smollm2_gguf, path)
        engine = LlamaCppEngine(path, slots=4, context_length=256)
        run = await make_run(engine).start()
    yield Subject(
        run,
        repeats_draws=False,
        draws_alike_beside_others=not on_gpu,
        near=NEAR_ON_A_GPU if on_gpu else NEAR,
    )
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def transformers(make_run, wordy_llama):
    from workers.engines.transformers import TransformersEngine  # noqa: PLC0415

    engine = TransformersEngine(str(wordy_llama), slots=8, context_length=512, dtype="float32")
    yield Subject(await make_run(engine).start(), repeats_itself=False)
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mlx(make_run, random_llama):
    """A small model: MLX's kernels for CPUs give SmolLM2 one token a second."""
    from workers.engines.mlx import MlxEngine  # noqa: PLC0415

    engine = MlxEngine(str(random_llama(24)), slots=4, context_length=256, dtype="float32")
    yield Subject(await make_run(engine).start())
    await engine.close()


@pytest.fixture(scope="session")
def vllm(vllm_run, on_gpu):
    return Subject(
        vllm_run,
        repeats_draws=False,
        continues_constraints=False,
        binds_length=False,
        near=NEAR_ON_A_GPU if on_gpu else NEAR,
    )


@pytest.fixture(scope="session")
def sglang(sglang_run, on_gpu):
    """Seeds need --enable-deterministic-inference, which SGLang does not know on CPUs."""
    return Subject(
        sglang_run,
        seeds=on_gpu,
        scores_first=False,
        cuts_by_min_p=not on_gpu,
        repeats_draws=on_gpu,
        continues_constraints=False,
        binds_length=False,
        near=NEAR_ON_A_GPU if on_gpu else NEAR,
    )


# Where they are installed: the first two by `make test-engines`.
_HEAVY = [
    engine
    for engine, module in (("mlx", "mlx_lm"), ("vllm", "vllm"), ("sglang", "sglang"))
    if find_spec(module)
]
ENGINES = ["fake", "faulty", "llama_cpp", "transformers", *_HEAVY]


@pytest.fixture(params=ENGINES)
def subject(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def run(subject):
    return subject.run


@pytest_asyncio.fixture(loop_scope="session")
async def story(run):
    return await run.encode("Once upon a time there was a")


@pytest_asyncio.fixture(loop_scope="session")
async def own_story(request, run):
    """A prompt whose beginning no test of longer ones computes.

    llama.cpp has other kernels for some 64 tokens at once, and with quantised weights they give
    log-probabilities that differ by up to 0.3; what one has cached, the next request builds upon.
    """
    title = request.node.originalname.removeprefix("test_").replace("_", " ")
    return await run.encode(f"How {title}: once upon a time there was a")  # no other begins so


@pytest_asyncio.fixture(loop_scope="session")
async def eos(run):
    (token,) = await run.encode(run.engine.tokenizer.special_tokens["eos_token"])
    return token
