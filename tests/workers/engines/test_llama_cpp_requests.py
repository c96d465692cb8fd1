"""What llama.cpp is asked for: nothing is left to its defaults."""

import pytest

from queueserve.errors import InvalidRequestError
from queueserve.protocol import Sampling
from workers.engines import llama_cpp_requests as requests
from workers.engines.base import Sequence


def draw(generated=(), banned=(), only=(), grammar=None, **sampling):
    sequence = Sequence(id="s", prompt=(7, 8), sampling=Sampling(**sampling))
    own = {"banned": banned, "only": only, "grammar": grammar}
    return requests.draw(sequence, list(generated), slot=3, count=5, stream=True, **own)


def test_every_option_that_bears_on_the_draw_is_neutral_by_default():
    request = draw()
    assert 0 <= request.pop("seed") < 0xFFFFFFFF
    assert request == {
        "prompt": [7, 8],
        "n_predict": 5,
        "id_slot": 3,
        "cache_prompt": True,
        "verbose": True,
        "return_tokens": True,
        "stream": True,
        "return_progress": True,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": [],
        "grammar": "",
        "n_probs": 0,
    }


def test_what_was_generated_follows_the_prompt_and_moves_the_seed():
    first, second = draw(seed=4), draw((9,), seed=4)
    assert second["prompt"] == [7, 8, 9]
    assert first["seed"] != second["seed"]
    assert first["seed"] == draw(seed=4)["seed"] != draw(seed=5)["seed"]


def test_a_repetition_penalty_looks_at_everything():
    request = draw((9, 9), repetition_penalty=1.5)
    assert (request["repeat_penalty"], request["repeat_last_n"]) == (1.5, 9)


def test_presence_and_frequency_become_a_bias_against_what_was_generated():
    request = draw(
        (9, 9, 5),
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={9: 3.0, 4: 1.0},
        banned=(1,),
    )
    assert request["logit_bias"] == [[9, 2.0], [4, 1.0], [5, -0.75], [1, False]]
    assert request["presence_penalty"] == request["frequency_penalty"] == 0.0


def test_without_those_penalties_what_was_generated_has_no_bias():
    assert draw((9, 9), logit_bias={4: 1.0})["logit_bias"] == [[4, 1.0]]
    assert not requests.needs_steps(Sampling(repetition_penalty=2.0))
    assert requests.needs_steps(Sampling(presence_penalty=-0.5))
    assert requests.needs_steps(Sampling(frequency_penalty=0.1))


@pytest.mark.parametrize("logprobs, asked", [(None, 0), (0, 1), (1, 1), (20, 20)])
def test_a_logprob_takes_at_least_one_alternative(logprobs, asked):
    assert draw(logprobs=logprobs)["n_probs"] == asked


@pytest.mark.parametrize(
    "param, own",
    [
        ("prompt", {"prompt": (100,)}),
        ("prompt", {"prompt": ()}),
        ("prompt", {"prompt": (1,), "generated": (-1,)}),
        ("logit_bias", {"sampling": Sampling(logit_bias={100: 1.0})}),
        ("stop_token_ids", {"sampling": Sampling(stop_token_ids=(1, 100))}),
    ],
)
def test_tokens_out_of_the_vocabulary_are_refused(param, own):
    requests.check(Sequence(id="s", prompt=(0, 99), sampling=Sampling()), 100)
    sequence = Sequence(**({"id": "s", "prompt": (1,), "sampling": Sampling()} | own))
    with pytest.raises(InvalidRequestError) as caught:
        requests.check(sequence, 100)
    assert caught.value.param == param


def test_seeds_differ_and_none_of_them_means_any():
    seeds = {requests.seed_at(seed, index) for seed in (0, 1, -1, 1 << 63) for index in range(9)}
    assert len(seeds) == 36
    assert all(0 <= seed < 0xFFFFFFFF for seed in seeds)


def test_under_a_grammar_a_banned_token_stays_possible_where_nothing_else_is_left():
    bound = draw(banned=[2], grammar='start: "a"')
    assert bound["grammar"] == '%llguidance {}\nstart: "a"'
    assert bound["logit_bias"] == [[2, -1000.0]]
    assert draw(banned=[2])["logit_bias"] == [[2, False]]


def test_the_only_tokens_that_may_come_keep_their_own_biases():
    request = draw((5,), only=(4, 9), logit_bias={9: 3.0, 7: 1.0}, presence_penalty=0.5)
    assert request["logit_bias"] == [[9, 1003.0], [7, 1.0], [5, -0.5], [4, 1000.0]]
