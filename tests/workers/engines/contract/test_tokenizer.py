"""Text to tokens and back, a token at a time."""

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


MULTIBYTE = "naïve café, 日本語, 😀🎉!"


async def test_every_token_has_a_piece_and_special_ones_their_name(run, eos):
    tokenizer = run.engine.tokenizer
    tokens = await run.encode(MULTIBYTE)
    assert b"".join(map(tokenizer.piece, tokens)).decode().strip() == MULTIBYTE
    assert tokenizer.piece(eos).decode() == tokenizer.special_tokens["eos_token"]


async def test_text_comes_back_whole_from_its_tokens(run):
    tokens = await run.encode(MULTIBYTE)
    detokenizer = run.engine.tokenizer.detokenizer()
    pieces = [detokenizer.feed(token) for token in tokens]
    assert "".join(pieces).strip() == MULTIBYTE
    assert detokenizer.flush() == ""
    assert len(tokens) > len(MULTIBYTE.split())
    assert not any("\ufffd" in piece for piece in pieces)


async def test_a_character_cut_short_is_held_back_and_shows_at_the_end(run):
    tokens = await run.encode("ok 🎉")
    detokenizer = run.engine.tokenizer.detokenizer()
    text = "".join(map(detokenizer.feed, tokens[:-1]))
    assert text.strip() == "ok"
    assert set(detokenizer.flush()) == {"\ufffd"}


async def test_a_primed_detokenizer_goes_on_where_the_other_stood(run):
    tokens = await run.encode(MULTIBYTE)
    for cut in range(len(tokens) + 1):
        first, second = (run.engine.tokenizer.detokenizer() for _ in range(2))
        for token in tokens[:cut]:
            first.feed(token)
            second.feed(token)
        rest = [
            detokenizer.feed(token) for token in tokens[cut:] for detokenizer in (first, second)
        ]
        assert rest[::2] == rest[1::2]


async def test_special_tokens_are_recognised_in_text_and_have_none_themselves(run, eos):
    tokens = await run.encode("hello" + run.engine.tokenizer.special_tokens["eos_token"])
    assert tokens[-1] == eos
    assert run.text(tokens).strip() == "hello"
