"""How many tokens may follow a prompt and what another worker has generated."""

import pytest

from queueserve.errors import ContextLengthExceededError, InvalidRequestError
from queueserve.protocol import Sampling
from workers.engines.base import Sequence
from workers.engines.room import tokens_left


def sequence(prompt, generated=0, max_tokens=None):
    return Sequence(
        id="s",
        prompt=(1,) * prompt,
        generated=(2,) * generated,
        sampling=Sampling(max_tokens=max_tokens),
    )


@pytest.mark.parametrize(
    "given,left",
    [
        (sequence(3), 7),
        (sequence(3, max_tokens=5), 5),
        (sequence(3, max_tokens=50), 7),
        (sequence(3, generated=2), 5),
        (sequence(3, generated=2, max_tokens=5), 3),
        (sequence(3, generated=5, max_tokens=5), 0),
        (sequence(9), 1),
    ],
)
def test_the_context_and_the_request_both_limit_it(given, left):
    assert tokens_left(given, 10) == left


def test_a_prompt_must_leave_room_for_a_token():
    with pytest.raises(ContextLengthExceededError, match="10 tokens"):
        tokens_left(sequence(10), 10)


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidRequestError):
        tokens_left(sequence(0), 10)
