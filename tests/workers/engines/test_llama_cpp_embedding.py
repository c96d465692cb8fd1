"""Vectors from llama.cpp: the real MiniLM, converted to GGUF here, beside transformers' own."""

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
from workers.engines.llama_cpp_embedding import LlamaCppEmbeddingEngine, embeds
from workers.models import resolve

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = [
    "A cat sits on the mat.",
    "A kitten is lying on a rug.",
    "The stock market fell sharply on Monday, and the central bank did nothing about it.",
    "naïve 日本語!",
    "",
]


def is_special(token):
    return len(token) > 2 and token[0] + token[-1] == "[]"


def spelt(token):
    """A WordPiece token as GGUF has it: the sign of SentencePiece begins a word."""
    if is_special(token):
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def convert(source, target):
    """Write a BERT with mean pooling as a GGUF file, as llama.cpp's own script does."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    config = json.loads((source / "config.json").read_text())
    tokens = (source / "vocab.txt").read_text().splitlines()
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(map(spelt, tokens)))
    writer.add_token_types([3 if is_special(token) else 1 for token in tokens])
    writer.add_token_type_count(config["type_vocab_size"])
    for add, token in (
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_pad_token_id, "[PAD]"),
    ):
        add(tokens.index(token))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        if known := names.get_name(name, try_suffixes=(".weight", ".bias")):
            writer.add_tensor(known, tensor.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def minilm():
    return Path(resolve("minilm").path)


@pytest.fixture(scope="module")
def minilm_gguf(minilm, tmp_path_factory):
    target = tmp_path_factory.mktemp("gguf") / "minilm.F32.gguf"
    convert(minilm, target)
    return target


@pytest.fixture
async def engine(minilm_gguf):
    made = make_engine(resolve(str(minilm_gguf)), EngineOptions())
    assert isinstance(made, LlamaCppEmbeddingEngine)
    await made.start(lambda outputs: None)
    yield made
    await made.close()


async def tokens_of(engine, texts=TEXTS):
    return [await engine.tokenizer.encode(text, add_special=True) for text in texts]


def plain(path, texts):
    """The vectors as the model's card computes them, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path)
    with torch.inference_mode():
        hidden = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in texts]
        return torch.nn.functional.normalize(torch.stack([one.mean(0) for one in hidden]))


async def test_the_vectors_are_those_of_the_original_weights(engine, minilm):
    assert engine.info.tasks == ("embed", "score")
    assert (engine.info.context_length, engine.dimensions) == (512, 384)
    tokens = await tokens_of(engine)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    assert list(map(list, tokens)) == [theirs(text)["input_ids"] for text in TEXTS]
    vectors = torch.tensor([list(vector) for vector in await engine.embed(tokens)])
    assert torch.allclose(vectors, plain(minilm, TEXTS), atol=1e-3)


async def test_a_batch_of_many_lengths_gives_what_each_gives_alone(engine):
    texts = [" ".join(["word"] * (n % 20)) for n in range(40)]
    many = await engine.embed(await tokens_of(engine, texts))
    assert engine.steps >= 2
    for n in (0, 19, 37):
        [alone] = await engine.embed(await tokens_of(engine, [texts[n]]))
        assert list(alone) == pytest.approx(list(many[n]), abs=1e-3)
        assert math.hypot(*alone) == pytest.approx(1, abs=1e-4)


async def test_an_input_may_fill_the_context(engine):
    [vector] = await engine.embed([(101, *[2773] * 510, 102)])
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)


async def test_a_token_that_the_model_lacks_is_refused_and_nothing_else(engine):
    good, bad = await asyncio.gather(
        engine.embed([(101, 102)]), engine.embed([(101, 30522)]), return_exceptions=True
    )
    assert len(good) == 1
    assert isinstance(bad, InvalidRequestError)
    assert "no token 30522" in bad.message


async def test_it_generates_nothing_and_after_its_end_it_embeds_nothing(minilm_gguf):
    outputs = []
    engine = LlamaCppEmbeddingEngine(minilm_gguf)
    await engine.start(outputs.extend)
    engine.add(Sequence(id="s", prompt=(1,), sampling=Sampling()))
    await asyncio.sleep(0)
    assert isinstance(outputs[0].error, InvalidRequestError)
    await engine.close()
    with pytest.raises(EngineError, match="not running"):
        await engine.embed([(101, 102)])


def test_a_chat_model_gives_no_vectors(smollm2_gguf):
    assert not embeds(smollm2_gguf)


def test_a_reranker_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "rank.gguf", "bert")
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(EngineError, match="scores pairs"):
        make_engine(resolve(str(tmp_path / "rank.gguf")), EngineOptions())
