"""Outputs of models, as events cut at any places: what the renderers of blocks are tried with."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from queueserve.api.parsers import make_parser
from queueserve.protocol import Delta, Finished, Started

NAMES = ("f", "get_weather")
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
ARGUMENTS = st.dictionaries(TEXT, TEXT | st.integers(-9, 9), max_size=3)


def call(name: str, arguments: dict) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{body}</tool_call>"


CALLS = st.builds(call, st.sampled_from(NAMES), ARGUMENTS)
OUTPUTS = st.builds(
    lambda thought, parts: (f"<think>{thought}</think>" if thought else "") + "".join(parts),
    TEXT,
    st.lists(TEXT | CALLS, max_size=5),
)
"""Whole outputs; text in them may look like anything."""


@st.composite
def batches(draw, outputs=OUTPUTS, reasons=("stop", "length")):
    """The batches of events of one job, and the output that they bring."""
    output = draw(outputs)
    if draw(st.booleans()):
        output = output[: draw(st.integers(0, len(output)))]  # it may break off anywhere
    cuts = sorted(draw(st.lists(st.integers(0, len(output)), max_size=8)))
    pieces = [output[a:b] for a, b in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    made = events(pieces, draw(st.sampled_from(reasons)), together=draw(st.booleans()))
    return made, output


def events(pieces, reason="stop", *, together=False):
    """One batch, or a batch for every event; the last piece is one that was held back."""
    *shown, held_back = pieces
    made = [Started("j", 1, 0, 7, 2, "hash", "fp", "w")]
    made += [Delta("j", 1, seq, 0, text, (seq,)) for seq, text in enumerate(shown)]
    made.append(Finished("j", 1, len(shown), 0, held_back, reason))
    return [[(0, made)]] if together else [[(0, [event])] for event in made]


def parser():
    return make_parser(tools="hermes", names=NAMES, reasoning="think")


def frames_of(stream: bytes) -> list[dict]:
    """The data of the frames; each must name the type of its data as its event."""
    *frames, rest = stream.decode().split("\n\n")
    assert rest == ""
    found = []
    for frame in frames:
        event, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {found[-1]['type']}"
    return found
