"""Bytes of tokens, text from tokens, and tokens from bytes, on small made-up vocabularies."""

import pytest

from queueserve.errors import EngineError
from workers.engines.gguf_header import Header
from workers.engines.llama_cpp_vocabulary import Utf8Detokenizer, Vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def header(model, tokens, **more):
    return Header(
        {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.tokens": [text for text, _ in tokens],
            "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        }
        | more,
        digest="",
    )


def text(vocabulary, tokens):
    detokenizer = Utf8Detokenizer(vocabulary)
    return [detokenizer.feed(token) for token in tokens], detokenizer.flush()


SENTENCEPIECE = header(
    "llama",
    [
        ("<unk>", UNKNOWN),
        ("<s>", CONTROL),
        ("</s>", CONTROL),
        ("<0x0A>", BYTE),
        ("<0xE5>", BYTE),
        ("<0xA5>", BYTE),
        ("<0xBD>", BYTE),
        ("▁Hello", NORMAL),
        ("▁", NORMAL),
        ("é", NORMAL),
        ("▁▁world", NORMAL),
        ("<tool>", USER_DEFINED),
        ("▁raw", USER_DEFINED),
        ("[unused]", UNUSED),
    ],
    **{"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2},
)

BYTE_LEVEL = header(
    "gpt2",
    [
        ("<|end|>", CONTROL),
        ("Ġ", NORMAL),
        ("å", NORMAL),
        ("¥", NORMAL),
        ("½", NORMAL),
        ("Ġå", NORMAL),
        ("å¥", NORMAL),
        ("Ċ", NORMAL),
        ("Ã©", NORMAL),
        ("Ī", NORMAL),
        ("  ", USER_DEFINED),
        ("日", NORMAL),
    ],
    **{"tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.eos_token_id": 0},
)


def test_sentencepiece_words_bytes_and_special_tokens():
    vocabulary = Vocabulary.read(SENTENCEPIECE)
    assert vocabulary.pieces[:4] == [b"", b"", b"", b"\n"]
    assert text(vocabulary, [1, 7, 10, 2]) == (["", " Hello", "  world", ""], "")
    assert text(vocabulary, [9, 3, 11, 12, 13]) == (["é", "\n", "<tool>", "▁raw", ""], "")
    assert vocabulary.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert vocabulary.chat_template is None


def test_the_space_before_the_first_word_is_kept_as_the_output_continues_a_prompt():
    assert text(Vocabulary.read(SENTENCEPIECE), [7]) == ([" Hello"], "")


def test_byte_tokens_make_whole_characters():
    assert text(Vocabulary.read(SENTENCEPIECE), [4, 5, 6, 9]) == (["", "", "好", "é"], "")


def test_byte_level_tokens():
    vocabulary = Vocabulary.read(BYTE_LEVEL)
    assert vocabulary.pieces[5:10] == [b" \xe5", b"\xe5\xa5", b"\n", b"\xc3\xa9", b"\x88"]
    assert vocabulary.pieces[10:] == [b"  ", "日".encode()]
    assert text(vocabulary, [0, 5, 3, 4, 8]) == (["", " ", "", "好", "é"], "")
    assert vocabulary.chat_template == "{{ messages }}"


def test_all_256_bytes_have_a_byte_level_letter():
    letters = [chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    letters += [chr(0x100 + index) for index in range(68)]
    vocabulary = Vocabulary.read(header("gpt2", [(letter, NORMAL) for letter in letters]))
    assert sorted(vocabulary.pieces) == [bytes([byte]) for byte in range(256)]


def test_a_character_cut_short_shows_at_the_end_and_a_broken_one_at_once():
    vocabulary = Vocabulary.read(BYTE_LEVEL)
    assert text(vocabulary, [2, 3]) == (["", ""], "\ufffd")
    assert text(vocabulary, [2, 7, 3]) == (["", "\ufffd\n", "\ufffd"], "")


def test_what_a_token_completes_depends_on_the_tokens_before_only():
    vocabulary = Vocabulary.read(BYTE_LEVEL)
    first, second = Utf8Detokenizer(vocabulary), Utf8Detokenizer(vocabulary)
    assert [first.feed(token) for token in (5, 3)] == [" ", ""]
    assert [second.feed(token) for token in (5, 3, 4, 7)] == [" ", "", "好", "\n"]
    assert [first.feed(token) for token in (4, 7)] == ["好", "\n"]


def test_held_back_tokens_are_those_after_which_a_character_was_incomplete():
    vocabulary = Vocabulary.read(BYTE_LEVEL)
    assert vocabulary.held_back(b"\xe5\xa5", 1) == [(6,)]
    # The space alone, or before it, would have been sent.
    assert vocabulary.held_back(b" \xe5\xa5", 2) == [(5, 3)]
    assert vocabulary.held_back(b" \xe5\xa5", 1) == []
    assert vocabulary.held_back(b" ", 1) == []
    assert vocabulary.held_back(b"\xe5\xa5\xbd", 3) == []
    assert vocabulary.held_back(b"\xe5x", 2) == []
    assert vocabulary.held_back(b"", 0) == [()]
    assert vocabulary.held_back(b"", 1) == []


def test_all_ways_to_write_what_was_held_back_long_pieces_first():
    vocabulary = Vocabulary([b"\xf0", b"\x9f", b"\xa5", b"\xf0\x9f", b"\x9f\xa5"])
    assert vocabulary.held_back(b"\xf0\x9f\xa5", 2) == [(3, 2), (0, 4)]
    assert vocabulary.held_back(b"\xf0\x9f\xa5", 3) == [(0, 1, 2)]
    assert vocabulary.held_back(b"\xf0\x9f\xa5", 4) == []


def test_a_token_without_text_may_be_held_back_too():
    vocabulary = Vocabulary([b"", b"\xe5", b"\xa5", b"\xe5\xa5"])
    assert vocabulary.held_back(b"\xe5\xa5", 2) == [(1, 2), (3, 0)]
    assert vocabulary.held_back(b"\xe5", 3) == [(1, 0, 0)]


def test_tokens_with_the_same_bytes_are_all_named():
    vocabulary = Vocabulary([b"\xe5", b"\xa5", b"\xe5"])
    assert vocabulary.held_back(b"\xe5\xa5", 2) == [(0, 1), (2, 1)]


def test_too_many_ways_are_none_and_found_quickly():
    vocabulary = Vocabulary([b"\xe5", b"\xe5\xe5", b"\xe5\xe5\xe5"])
    assert vocabulary.held_back(b"\xe5" * 100, 50) == []
    assert vocabulary.held_back(b"\xe5" * 2000, 2000) == []
    assert vocabulary.held_back(b"\xe5" * 60, 60) == [(0,) * 60]


@pytest.mark.parametrize("kind", ["rwkv", "t5", "none"])
def test_another_kind_of_vocabulary_is_named_in_the_error(kind):
    with pytest.raises(EngineError, match=rf"kind '{kind}'.*bert, gpt2, llama"):
        Vocabulary.read(header(kind, [("a", NORMAL)]))


def test_a_vocabulary_without_types_has_normal_tokens_only():
    vocabulary = Vocabulary.read(
        Header({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["▁a", "b"]}, digest="")
    )
    assert vocabulary.pieces == [b" a", b"b"]
    assert vocabulary.plain_token() == 1
