"""Penalties of tokens that another worker has generated, as biases."""

from queueserve.protocol import Sampling
from workers.engines.penalties import biases


def test_each_token_pays_for_its_presence_once_and_for_its_frequency_each_time():
    own = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    assert biases(own, (4, 5, 5)) == {4: -0.75, 5: -1.0}


def test_a_bias_stays_and_the_request_is_not_changed():
    own = Sampling(logit_bias={4: 2.0, 6: 1.0}, frequency_penalty=1.0)
    assert biases(own, (4,)) == {4: 1.0, 6: 1.0}
    assert own.logit_bias == {4: 2.0, 6: 1.0}


def test_without_penalties_nothing_is_owed():
    assert biases(Sampling(repetition_penalty=1.5), (4, 5)) == {}
