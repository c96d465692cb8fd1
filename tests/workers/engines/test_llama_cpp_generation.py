"""Token ids that llama.cpp's server does not tell, on tiny models made for it."""

import importlib.util
import re

import pytest
from llama_cpp_alone import Model, tokens_of
from tiny_gguf import EMOJI, TOOL, byte_level_model, chain_model, sentencepiece_model

from queueserve.protocol import Constraint, Sampling
from workers.engines import llama_cpp_requests as requests
from workers.engines.base import Sequence
from workers.engines.llama_cpp_generation import Generation
from workers.engines.llama_cpp_vocabulary import Utf8Detokenizer

if importlib.util.find_spec("xllamacpp") is None:  # importing it here would fix OpenMP's settings
    pytest.skip("xllamacpp is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    merged = [b" \xe5", b"\xe5\xa5", b"\xa5\xbd", b"\xbda", "é".encode(), b"aa"]
    model = Model(byte_level_model(tmp_path_factory.mktemp("tiny") / "bytes.gguf", merged))
    yield model
    model.server.close()


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    model = Model(sentencepiece_model(tmp_path_factory.mktemp("tiny") / "pieces.gguf"))
    yield model
    model.server.close()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    model = Model(chain_model(tmp_path_factory.mktemp("tiny") / "chain.gguf"))
    yield model
    model.server.close()


@pytest.fixture(params=["byte_level", "sentencepiece"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def starts(monkeypatch):
    """How many tokens there were at the start of each streamed request."""
    seen = []
    draw = requests.draw

    def noted(sequence, generated, **own):
        seen.append(len(generated))
        return draw(sequence, generated, **own)

    monkeypatch.setattr(requests, "draw", noted)
    return seen


@pytest.fixture
def asked(monkeypatch):
    """What the cache of a slot was asked for, and its answers."""
    seen = []
    confirmed = Generation._confirmed

    def noted(self, tokens, last):
        seen.append((tokens, confirmed(self, tokens, last)))
        return seen[-1][1]

    monkeypatch.setattr(Generation, "_confirmed", noted)
    return seen


def told_truly(model, starts, prompt, **sampling):
    """Generate, and check each token that was drawn by the first request against the truth."""
    outputs = model.generate(prompt, **sampling)
    tokens = tokens_of(outputs)
    truth = model.truth(prompt, **sampling)
    # After another request llama.cpp draws from a new seed. What the first one held back at its
    # end is told by the first output that goes beyond the second one's start.
    known = starts[1] if len(starts) > 2 else len(tokens)
    assert tuple(tokens[:known]) == truth[:known]
    assert len(tokens) <= sampling["max_tokens"]
    starts.clear()
    return outputs


def test_llama_cpp_has_the_same_bytes_for_every_token(model):
    request = requests.look([5], slot=0, forced=model.vocabulary.plain_token(), alternatives=9999)
    seen = {}
    model.server._server.handle_completions(request | {"stream": False}, seen.update)
    (content,) = seen["choices"][0]["logprobs"]["content"]
    table = {one["id"]: bytes(one["bytes"]) for one in content["top_logprobs"]}
    assert [table[token] for token in range(model.size)] == list(model.vocabulary.pieces)


def test_the_tokens_that_end_a_sequence_are_asked_of_llama_cpp(byte_level, sentencepiece):
    assert byte_level.server.ends == {0}
    assert sentencepiece.server.ends == {2}


@pytest.mark.parametrize("seed", range(12))
def test_all_drawn_tokens_are_told_truly(model, starts, seed):
    told_truly(model, starts, (7, 8, 9), temperature=1.0, seed=seed, max_tokens=40)


@pytest.mark.parametrize("logprobs", [None, 2])
def test_characters_that_can_be_written_in_several_ways(chain, starts, asked, logprobs):
    emoji = EMOJI.decode()
    ways = set()
    for seed in range(40):
        outputs = told_truly(
            chain,
            starts,
            (2 + EMOJI[-1],),
            temperature=1.0,
            seed=seed,
            max_tokens=24,
            logprobs=logprobs,
        )
        if logprobs is not None:
            assert all(len(output.logprobs) == len(output.tokens) for output in outputs)
        detokenizer = Utf8Detokenizer(chain.vocabulary)
        text = "".join(map(detokenizer.feed, tokens_of(outputs)))
        assert set(text) == {emoji}
        ways |= {output.tokens for output in outputs}
    assert len(ways) > 8
    assert {right for _, right in asked} == {True, False}


def test_a_control_token_inside_a_character_is_told_too(chain, starts):
    with_tool = 0
    for seed in range(40):
        outputs = told_truly(
            chain, starts, (2 + EMOJI[-1],), temperature=1.0, seed=seed, max_tokens=24
        )
        with_tool += TOOL in tokens_of(outputs)
    assert with_tool > 10


def test_the_way_is_found_also_where_the_cache_says_that_the_first_is_wrong(chain, asked):
    ways = chain.vocabulary.held_back(EMOJI[:3], 2)
    last = 2 + EMOJI[-1]
    texts = [tuple(chain.vocabulary.pieces[token] for token in way) for way in ways]
    assert texts[:2] == [(EMOJI[:2], EMOJI[2:3]), (EMOJI[:1], EMOJI[1:3])]
    for way in ways[:2]:
        bias = dict.fromkeys((*way, last), 100.0)
        outputs = chain.generate(
            (last,), temperature=0.0, seed=1, max_tokens=3, logit_bias=bias, logprobs=1
        )
        assert tuple(tokens_of(outputs)) == (*way, last)
    assert asked == [(ways[0], True), (ways[0], False)]


def test_logprobs_of_tokens_that_were_held_back(byte_level):
    bias = byte_level.only(b"\xe5", b"\xa5", b"\xbd", b"a", b"\xe5\xa5")
    plain = byte_level.generate((7, 8), temperature=1.0, seed=3, max_tokens=24, logit_bias=bias)
    outputs = byte_level.generate(
        (7, 8), temperature=1.0, seed=3, max_tokens=24, logit_bias=bias, logprobs=byte_level.size
    )
    tokens = tokens_of(outputs)
    logprobs = [one for output in outputs for one in output.logprobs]
    assert len(tokens_of(plain)) == len(tokens) == len(logprobs) == 24
    assert any(len(output.tokens) > 1 for output in outputs)
    for at, (token, own) in enumerate(zip(tokens, logprobs, strict=True)):
        alone = byte_level.generate(
            (7, 8),
            tuple(tokens[:at]),
            temperature=0.0,
            seed=0,
            max_tokens=at + 1,
            logprobs=byte_level.size,
            logit_bias={byte_level.vocabulary.plain_token(): 1000.0},
        )
        expected = dict(alone[0].logprobs[0].top)
        assert own.logprob == pytest.approx(expected[token], abs=1e-3)
        assert dict(own.top) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_limit_inside_a_character_loses_nothing(model, limit):
    bias = model.only(*([bytes([byte]) for byte in range(0x80, 0x100)]))
    sampling = {"temperature": 0.0, "seed": 1, "logit_bias": bias}
    outputs = model.generate((7, 8), max_tokens=limit, **sampling)
    truth = model.truth((7, 8), max_tokens=limit, **sampling)
    assert tuple(tokens_of(outputs)) == truth
    assert len(truth) == limit
    assert outputs[-1].finish == "length"


def test_an_end_inside_a_character_loses_nothing(byte_level):
    # The bias leaves one lead byte and the end to choose from.
    lead = 2 + 0xE5
    bias = byte_level.only(b"\xe5") | {0: 0.0}
    ends = set()
    for seed in range(20):
        outputs = byte_level.generate(
            (7, 8, 9), temperature=3.0, seed=seed, max_tokens=6, logit_bias=bias
        )
        assert set(tokens_of(outputs)) <= {lead}
        ends.add((len(tokens_of(outputs)), outputs[-1].finish))
    assert (6, "length") in ends
    assert {finish for _, finish in ends} == {"length", "stop"}


def test_a_stop_token_among_tokens_that_came_together_ends_there(byte_level):
    # Only the three bytes of "好" can be drawn, in any order; the second one stops.
    bias = byte_level.only(b"\xe5", b"\xa5", b"\xbd")
    stop = 2 + 0xA5
    there = 0
    for seed in range(8):
        sampling = {"temperature": 1.0, "seed": seed, "max_tokens": 12, "logit_bias": bias}
        free = byte_level.truth((7, seed), **sampling)
        outputs = byte_level.generate((7, seed), **sampling, stop_token_ids=(stop,))
        tokens = tuple(tokens_of(outputs))
        assert stop not in tokens
        assert outputs[-1].finish == ("stop" if len(tokens) < 12 else "length")
        there += stop in free and tokens == free[: free.index(stop)]
    assert there > 4  # those that took a second request may be drawn otherwise


def test_text_of_the_tokens_is_the_text_that_llama_cpp_sends(model):
    for seed in range(6):
        sampling = {"temperature": 1.0, "seed": seed, "max_tokens": 30, "ignore_eos": True}
        tokens = model.truth((7, 8, 9), **sampling)
        detokenizer = Utf8Detokenizer(model.vocabulary)
        text = "".join(map(detokenizer.feed, tokens)) + detokenizer.flush()
        answers = []
        sequence = Sequence(id="s", prompt=(7, 8, 9), sampling=Sampling(**sampling))
        request = requests.draw(sequence, [], slot=0, count=30, banned=(), stream=False)
        model.server._server.handle_completions(request, answers.append)
        assert answers[0]["__verbose"]["content"] == text


def test_a_sequence_goes_on_from_inside_a_character(model):
    bias = model.only(*([bytes([byte]) for byte in range(0x80, 0x100)]))
    sampling = {"temperature": 0.0, "seed": 1, "logit_bias": bias, "max_tokens": 10}
    whole = tokens_of(model.generate((7, 8), **sampling))
    for cut in range(11):
        rest = tokens_of(model.generate((7, 8), tuple(whole[:cut]), **sampling))
        assert whole[:cut] + rest == whole


def test_drawing_few_tokens_only_is_drawing_with_all_others_banned(model):
    allowed = range(5, 90, 7)
    others = set(range(model.size)).difference(allowed)
    drawn = set()
    for seed in range(20):
        sampling = Sampling(
            temperature=1.0, seed=seed, max_tokens=20, ignore_eos=True, logit_bias={5: -1.0, 7: 9.0}
        )
        sequence = Sequence(id="s", prompt=(7, 8, seed + 9), sampling=sampling)
        few, rest = (
            requests.draw(sequence, [], slot=0, count=20, stream=False, **own)
            for own in ({"only": allowed}, {"banned": others})
        )
        tokens = model.server.answer(few).tokens
        assert tokens == model.server.answer(rest).tokens
        drawn.update(tokens)
    assert len(drawn) > 5
    assert drawn <= set(allowed)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("own", ['start: "no such kind', "start: /[a-z ]*/"])
def test_where_llama_cpp_lets_the_grammar_go_the_output_still_satisfies_it(
    byte_level, monkeypatch, own, penalty
):
    """A grammar that it cannot read it drops without a word."""
    monkeypatch.setattr("workers.engines.llama_cpp_generation.to_lark", lambda _: own)
    constraint = Constraint("regex", "[0-9]{3}(é|日)[0-9]{2}")
    sampling = {"max_tokens": 40, "temperature": 1.0, "repetition_penalty": penalty}
    outputs = byte_level.generate((5, 6), constraint=constraint, **sampling)
    data = b"".join(byte_level.vocabulary.pieces[token] for token in tokens_of(outputs))
    assert re.fullmatch("[0-9]{3}(é|日)[0-9]{2}", data.decode())
    assert outputs[-1].finish == "stop"
