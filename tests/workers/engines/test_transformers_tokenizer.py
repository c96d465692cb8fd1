import asyncio
import json
import threading

import pytest

pytest.importorskip("transformers")
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workers.engines.transformers_tokenizer import TransformersTokenizer

TEXT = "Hello  world,\n\tnaïve café — 日本語 😀🎉 \u200d!"


@pytest.fixture(scope="module")
def byte_level(tiny_llama):
    return TransformersTokenizer(AutoTokenizer.from_pretrained(tiny_llama))


@pytest.fixture(scope="module")
def vicuna(vicuna_like):
    return TransformersTokenizer(AutoTokenizer.from_pretrained(vicuna_like))


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory):
    """A kind of vocabulary that does not write bytes."""
    words = ["[UNK]", "[SEP]", "play", "##ing", "the", "game"]
    backend = Tokenizer(
        models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return TransformersTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="[SEP]", unk_token="[UNK]")
    )


def pieces(tokenizer, tokens):
    detokenizer = tokenizer.detokenizer()
    return [*map(detokenizer.feed, tokens), detokenizer.flush()]


def encode(tokenizer, text, *, add_special=False):
    return asyncio.run(tokenizer.encode(text, add_special=add_special))


def test_byte_level_text_comes_back_byte_for_byte(byte_level):
    assert "".join(pieces(byte_level, encode(byte_level, TEXT))) == TEXT


def test_a_character_is_given_out_with_its_last_byte(byte_level):
    assert pieces(byte_level, encode(byte_level, "é🎉")) == ["", "é", "", "", "", "🎉", ""]


def test_bytes_that_are_no_character_show_as_such_and_harm_nothing_after_them(byte_level):
    broken = encode(byte_level, "🎉")[:2]
    assert pieces(byte_level, (*broken, *encode(byte_level, "ok"))) == ["", "", "\ufffdo", "k", ""]


def test_a_character_cut_short_shows_at_the_end_only(byte_level):
    assert pieces(byte_level, encode(byte_level, "a🎉")[:-1]) == ["a", "", "", "", "\ufffd"]


def test_sentencepiece_text_comes_back_with_the_space_that_a_first_word_brings(vicuna):
    tokens = encode(vicuna, TEXT)
    assert "".join(pieces(vicuna, tokens)) == " " + TEXT


def test_sentencepiece_words_carry_their_space(vicuna):
    tokens = encode(vicuna, "Hello USER Hello")
    text = pieces(vicuna, tokens)
    assert "".join(text) == " Hello USER Hello"
    assert text[0].startswith(" ")


def test_sentencepiece_bytes_make_whole_characters(vicuna):
    tokens = encode(vicuna, "日🎉")
    text = pieces(vicuna, tokens)
    assert [piece for piece in text if piece] == [" ", "日", "🎉"]
    assert pieces(vicuna, tokens[:-1])[-1] == "\ufffd"


def test_sentencepiece_ids_are_those_of_the_sentencepiece_library(vicuna, vicuna_like):
    sentencepiece = pytest.importorskip("sentencepiece")
    library = sentencepiece.SentencePieceProcessor(model_file=str(vicuna_like / "tokenizer.model"))
    for text in (TEXT, "A chat. USER: Hi! ASSISTANT:", "two  spaces "):
        assert list(encode(vicuna, text)) == library.encode(text)


def test_special_tokens_are_recognised_added_and_left_out_of_text(vicuna):
    assert vicuna.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    }
    plain = encode(vicuna, "Hello")
    assert encode(vicuna, "Hello", add_special=True) == (1, *plain)
    assert encode(vicuna, "Hello</s>") == (*plain, 2)
    assert "".join(pieces(vicuna, (1, *plain, 2))) == " Hello"


def test_an_added_token_that_is_not_special_is_text(tiny_llama):
    backend = AutoTokenizer.from_pretrained(tiny_llama)
    backend.add_tokens([AddedToken("<think>", special=False)])
    tokenizer = TransformersTokenizer(backend)
    assert encode(tokenizer, "a<think>b") == (*encode(tokenizer, "a"), 258, *encode(tokenizer, "b"))
    assert pieces(tokenizer, encode(tokenizer, "a<think>b")) == ["a", "<think>", "b", ""]


def test_a_token_beyond_the_vocabulary_has_no_text(byte_level):
    assert pieces(byte_level, [100_000]) == ["", ""]


def test_other_vocabularies_are_decoded_by_what_each_token_adds(word_pieces):
    tokens = encode(word_pieces, "playing the game")
    assert pieces(word_pieces, tokens) == ["play", "ing", " the", " game", ""]


def test_a_long_text_leaves_the_event_loop_free(tiny_llama):
    """The encoding waits for the event loop, so it ends only where the two run side by side."""
    tokenizer = TransformersTokenizer(AutoTokenizer.from_pretrained(tiny_llama))
    turned = threading.Event()
    waited = []
    encode_here = tokenizer._encode

    def encode_after_a_turn(*args):
        waited.append(turned.wait(timeout=10))
        return encode_here(*args)

    tokenizer._encode = encode_after_a_turn

    async def beside():
        encoding = asyncio.ensure_future(tokenizer.encode("word " * 20_000, add_special=False))
        await asyncio.sleep(0)
        turned.set()
        return len(await encoding)

    assert asyncio.run(beside()) == 100_000
    assert waited == [True]


def test_a_cut_that_the_files_ask_for_is_not_made(tiny_llama, tmp_path):
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(settings))
    tokenizer = TransformersTokenizer(AutoTokenizer.from_pretrained(tmp_path))
    assert len(encode(tokenizer, "more than four")) == 14


def test_of_several_chat_templates_the_default_one_is_given(tiny_llama):
    backend = AutoTokenizer.from_pretrained(tiny_llama)
    assert TransformersTokenizer(backend).chat_template is None
    backend.chat_template = "one"
    assert TransformersTokenizer(backend).chat_template == "one"
    backend.chat_template = {"default": "plain", "tool_use": "tools"}
    assert TransformersTokenizer(backend).chat_template == "plain"
