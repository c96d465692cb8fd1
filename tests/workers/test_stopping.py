import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.stopping import StopFilter

LETTERS = st.text(alphabet="ab\n", max_size=14)
STOPS = st.lists(st.text(alphabet="ab\n", max_size=4), max_size=4)


def run(stops, pieces):
    """What goes out piece by piece, and the text that is delivered at the end."""
    stop_filter = StopFilter(stops)
    outs = []
    for piece in pieces:
        out, hit = stop_filter.feed(piece)
        outs.append(out)
        if hit:
            return outs, "".join(outs)
    return outs, "".join(outs) + stop_filter.flush()


def naive(stops, text):
    """The text up to the first completed stop string, and whether there is one."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def naive_free(stops, text):
    """The text without the longest suffix that may still become a stop string."""
    starts = [
        at for at in range(len(text)) if any(stop.startswith(text[at:]) for stop in stops if stop)
    ]
    return text[: min(starts, default=len(text))]


def splits(text):
    for cuts in range(2 ** max(len(text) - 1, 0)):
        pieces, start = [], 0
        for at in range(1, len(text)):
            if cuts >> (at - 1) & 1:
                pieces.append(text[start:at])
                start = at
        yield [*pieces, text[start:]]


@given(STOPS, st.text(alphabet="ab\n", max_size=8))
@example(["abab", "bb"], "aababb")
@example(["abcd", "bc"], "abcd")
@example(["aab"], "aaab")
def test_every_split_gives_the_text_before_the_first_stop(stops, text):
    expected, _ = naive(stops, text)
    for pieces in splits(text):
        assert run(stops, pieces)[1] == expected


@given(STOPS, st.lists(LETTERS, max_size=6))
def test_what_goes_out_is_all_that_cannot_become_a_stop(stops, pieces):
    stop_filter, sent, seen = StopFilter(stops), "", ""
    for piece in pieces:
        out, hit = stop_filter.feed(piece)
        sent, seen = sent + out, seen + piece
        assert hit == naive(stops, seen)[1]
        if hit:
            assert sent == naive(stops, seen)[0]
            assert stop_filter.hit in stops
            assert seen[len(sent) :].startswith(stop_filter.hit)
            return
        assert sent == naive_free(stops, seen)
    assert sent + stop_filter.flush() == seen


@pytest.mark.parametrize(
    "stops,pieces,outs",
    [
        (["</s>"], ["Hi", " <", "/", "s", "> more"], ["Hi", " ", "", "", ""]),
        (["</s>"], ["Hi <", "/b", "> there"], ["Hi ", "</b", "> there"]),
        (["\n\n", "END"], ["one\n", "two E", "ND"], ["one", "\ntwo ", ""]),
        (["END"], ["a END of it END"], ["a "]),
        (["bc", "abcd"], ["ab", "cd"], ["", "a"]),
        (["cd", "abcd"], ["ab", "cd"], ["", ""]),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""]),
        (["é🙂"], ["caf", "é", "🙂!"], ["caf", "", ""]),
        (["]", "^-"], ["a-b^", "-c"], ["a-b", ""]),
    ],
)
def test_only_the_possible_stop_is_held_back(stops, pieces, outs):
    assert run(stops, pieces)[0] == outs


def test_without_stop_strings_everything_passes():
    assert run([], ["a", "", "b\n"]) == (["a", "", "b\n"], "ab\n")
    assert run(["", ""], ["a", "b"]) == (["a", "b"], "ab")


def test_the_rest_comes_out_at_the_end():
    stop_filter = StopFilter(["STOP"])
    assert stop_filter.feed("do not STO") == ("do not ", False)
    assert stop_filter.flush() == "STO"
    assert stop_filter.flush() == ""


def test_feeding_the_same_pieces_again_restores_the_state():
    pieces = ["He", "llo ##", "# w", "orld #", "#"]
    for done in range(len(pieces)):
        first, again = StopFilter(["###!"]), StopFilter(["###!"])
        for piece in pieces[:done]:
            assert first.feed(piece) == again.feed(piece)
        rest = [again.feed(piece) for piece in pieces[done:]]
        assert [first.feed(piece) for piece in pieces[done:]] == rest


def seconds(size):
    """Time for `size` one-character pieces that always nearly match a stop of the same size."""
    stop_filter = StopFilter(["a" * (size // 2) + "b"])
    start = time.process_time()
    for _ in range(size):
        stop_filter.feed("a")
    return time.process_time() - start


def test_the_time_is_linear_in_the_text():
    # Four times the text: about 4 times the time, 16 times if anything were quadratic.
    small = min(seconds(25_000) for _ in range(3))
    large = min(seconds(100_000) for _ in range(3))
    assert large < 10 * small
