"""Which turns of a conversation go when it is too long."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.truncation import truncated

ROLES = st.sampled_from(["system", "user", "assistant"])
MESSAGES = st.lists(st.tuples(ROLES, st.integers(1, 9)), min_size=1, max_size=12)


def size(request):
    return sum(len(message.content) for message in request.messages)


def shortened(messages, context_length, max_tokens=1):
    """The messages' numbers that are left, and how often was counted."""
    counted = []

    async def count(request):
        counted.append(size(request))
        return counted[-1]

    request = ChatCompletionRequest(
        model="m",
        messages=[{"role": role, "content": "x" * length} for role, length in messages],
        max_completion_tokens=max_tokens,
    )
    left = asyncio.run(truncated(request, count, context_length=context_length))
    places = [
        next(i for i, own in enumerate(request.messages) if own is message)
        for message in left.messages
    ]
    return left, places, len(counted)


@given(MESSAGES, st.integers(1, 60))
def test_instructions_and_the_newest_turns_stay_and_no_more_goes_than_must(messages, length):
    left, places, times = shortened(messages, length)
    roles = [role for role, _ in messages]
    first = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    if sum(size for _, size in messages) + 1 <= length:
        assert places == list(range(len(messages)))
        return
    assert places[:first] == list(range(first))
    kept = places[first:]
    assert kept == list(range(len(messages) - len(kept), len(messages)))
    cuts = [i for i in range(first + 1, len(roles)) if roles[i] == "user"]
    if not cuts:
        assert len(places) == len(messages)
        return
    assert kept[0] in cuts
    earlier = [cut for cut in cuts if cut < kept[0]]
    if earlier:  # one turn more would have been too long
        more = sum(s for _, s in messages[:first]) + sum(s for _, s in messages[earlier[-1] :])
        assert more + 1 > length
    if kept[0] != cuts[-1]:
        assert size(left) + 1 <= length
    assert times <= 5


def test_an_answer_without_a_bound_gets_room():
    _, places, _ = shortened([("user", 5), ("user", 5)] * 10, 40, None)
    assert len(places) == 7  # 35 of 40: an eighth is left for the answer
