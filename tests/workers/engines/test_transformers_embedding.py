"""Encoders on transformers: the real MiniLM, and a tiny random cross-encoder."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from queueserve.errors import EngineError, InvalidRequestError
from queueserve.protocol import Sampling
from workers.adapters import EngineOptions, make_engine
from workers.engines.base import Sequence
from workers.engines.transformers_embedding import EmbeddingEngine, ScoringEngine
from workers.models import resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = [
    "A cat sits on the mat.",
    "A kitten is lying on a rug.",
    "The stock market fell sharply on Monday, and the central bank did nothing about it.",
    "日本語",
    "",
]
OPTIONS = EngineOptions(threads=1)


@pytest.fixture(scope="module")
def minilm() -> str:
    return resolve("minilm").path


@pytest.fixture
async def engine(minilm):
    made = make_engine(resolve("minilm"), OPTIONS)
    assert isinstance(made, EmbeddingEngine)
    await made.start(lambda outputs: None)
    yield made
    await made.close()


async def tokens_of(engine, texts=TEXTS):
    return [await engine.tokenizer.encode(text, add_special=True) for text in texts]


def plain(path: str, texts: list[str]):
    """The vectors as the model's card computes them, one text at a time: no padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path)
    with torch.inference_mode():
        hidden = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in texts]
        return torch.nn.functional.normalize(torch.stack([one.mean(0) for one in hidden]))


async def test_the_vectors_are_the_models_own(engine, minilm):
    assert engine.info.tasks == ("embed", "score")
    assert (engine.info.context_length, engine.dimensions) == (256, 384)
    vectors = torch.tensor([list(v) for v in await engine.embed(await tokens_of(engine))])
    assert torch.allclose(vectors, plain(minilm, TEXTS), atol=1e-5)
    close, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert close > 0.5
    assert far < 0.2


async def test_a_batch_of_many_lengths_gives_what_each_gives_alone(engine):
    texts = [" ".join(["word"] * (n % 40)) for n in range(100)]
    many = await engine.embed(await tokens_of(engine, texts))
    assert engine.steps >= 2
    for n in (0, 39, 77):
        [alone] = await engine.embed(await tokens_of(engine, [texts[n]]))
        assert list(alone) == pytest.approx(list(many[n]), abs=1e-5)
        assert math.hypot(*alone) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("threads, slots", [(1, 16), (2, 32), (9, 64)])
async def test_jobs_at_once_are_what_fills_a_batch(minilm, threads, slots):
    before = torch.get_num_threads()
    try:
        made = EmbeddingEngine(minilm, threads=threads)
        await made.start(lambda outputs: None)
        assert made.info.slots == slots
        await made.close()
    finally:
        torch.set_num_threads(before)


async def test_a_batch_is_no_larger_than_the_memory_of_a_container_holds(minilm, control_groups):
    token = (8 * 384 + 1536 + 12 * 256) * 4  # bytes
    control_groups(["0::/pod/box"], {"pod/memory.max": 8 * 100 * token})
    made = EmbeddingEngine(minilm, threads=1, slots=3)
    await made.start(lambda outputs: None)
    assert made.info.slots == 3
    await made.embed([tuple(range(1000, 1020))] * 10)
    assert made.steps == 2  # of 100 tokens each
    [vector] = await made.embed([tuple(range(1000, 1150))])
    assert len(vector) == made.dimensions
    await made.close()


async def test_a_token_that_the_model_lacks_is_refused_and_nothing_else(engine):
    good, bad = await asyncio.gather(
        engine.embed([(101, 102)]), engine.embed([(101, 30522)]), return_exceptions=True
    )
    assert len(good) == 1
    assert isinstance(bad, InvalidRequestError)
    assert "no token 30522" in bad.message


async def test_it_generates_nothing(minilm):
    outputs = []
    engine = EmbeddingEngine(minilm)
    engine._sink = outputs.extend
    engine.add(Sequence(id="s", prompt=(1,), sampling=Sampling()))
    await asyncio.sleep(0)
    assert isinstance(outputs[0].error, InvalidRequestError)


async def test_what_is_not_loaded_says_so(minilm, tmp_path):
    with pytest.raises(EngineError, match="not loaded"):
        await EmbeddingEngine(minilm).embed([(1,)])
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(EngineError, match="cannot load"):
        await EmbeddingEngine(str(tmp_path)).start(lambda outputs: None)


# Cross-encoders


@pytest.fixture(scope="module")
def make_cross_encoder(minilm, tmp_path_factory):
    """A tiny random BERT with MiniLM's tokenizer, that scores pairs."""

    def make(**config) -> str:
        torch.manual_seed(7)
        path = tmp_path_factory.mktemp("cross")
        made = transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=30522,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                initializer_range=0.5,  # so that the scores differ
                **{"num_labels": 1, **config},
            )
        )
        made.save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(path)
        return str(path)

    return make


@pytest.fixture
async def start():
    engines = []

    async def start(path: str):
        made = make_engine(resolve(path), OPTIONS)
        engines.append(made)
        await made.start(lambda outputs: None)
        return made

    yield start
    for engine in engines:
        await engine.close()


def logits(path: str, pairs: list[tuple[str, str]]):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        return [model(**tokenizer(*pair, return_tensors="pt")).logits[0, 0] for pair in pairs]


async def test_scores_are_the_models_own_as_probabilities(make_cross_encoder, start):
    path = make_cross_encoder()
    engine = await start(path)
    assert isinstance(engine, ScoringEngine)
    assert engine.info.tasks == ("score",)
    texts = [(TEXTS[0], text) for text in TEXTS[:4]]
    scores = await engine.score([await engine.pair(*pair, limit=None) for pair in texts])
    expected = [float(torch.sigmoid(logit)) for logit in logits(path, texts)]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(scores) - min(scores) > 0.01


async def test_a_model_that_wants_its_logits_raw_gets_them(make_cross_encoder, start):
    identity = {"activation_fn": "torch.nn.modules.linear.Identity"}
    path = make_cross_encoder(sentence_transformers=identity)
    engine = await start(path)
    texts = [(TEXTS[0], text) for text in TEXTS[:4]]
    scores = await engine.score([await engine.pair(*pair, limit=None) for pair in texts])
    assert scores == pytest.approx([float(logit) for logit in logits(path, texts)], abs=1e-5)


@pytest.mark.parametrize("words", [(3, 40), (40, 3), (30, 40), (2, 2)])
async def test_of_a_pair_the_longer_text_is_cut_first(make_cross_encoder, start, words):
    path = make_cross_encoder()
    engine = await start(path)
    query, text = ("word " * count for count in words)
    pair = await engine.pair(query, text, limit=20)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    cut = tokenizer(query, text, truncation="longest_first", max_length=20)
    assert len(pair.tokens) == len(cut["input_ids"])
    assert sum(pair.types) == pytest.approx(sum(cut["token_type_ids"]), abs=1)  # a tie: either


async def test_a_classifier_of_several_labels_scores_no_pairs(make_cross_encoder, start):
    with pytest.raises(EngineError, match="3 labels"):
        await start(make_cross_encoder(num_labels=3))


async def test_weights_that_are_missing_are_not_made_up(make_cross_encoder, start):
    path = make_cross_encoder()
    config = json.loads((Path(path) / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (Path(path) / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="lacks the model's weights"):
        await start(path)
