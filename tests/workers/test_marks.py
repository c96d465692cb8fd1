"""Marks that are special tokens show in the text, where a parser looks for them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from queueserve.protocol import Continuation, Job
from queueserve.queue.consumer import Assignment
from workers.engines.fake import FakeEngine
from workers.engines.fake_tokens import EOS, FakeTokenizer
from workers.marks import Marks
from workers.run import Run
from workers.templates.dialects import Dialect

TOOL = {"type": "function", "function": {"name": "f"}}


class Marked(FakeTokenizer):
    """Its end-of-sequence token, which has no text, is the mark `mark`."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = mark

    async def encode(self, text, *, add_special):
        if text == self._mark:
            return (EOS,)
        return await super().encode(text, add_special=add_special)


async def shown(mark, dialect, tools=()):
    tokenizer = Marked(mark)
    marks = await Marks.of(tokenizer, dialect)
    job = Job(id="j", pool="m", model="m", kind="chat", tools=tools)
    detokenizer = marks.shown(job, tokenizer.detokenizer())
    text = "".join(map(detokenizer.feed, (65, EOS, 66)))
    return text + detokenizer.flush()


@pytest.mark.parametrize(
    "mark,dialect,tools,text",
    [
        ("[TOOL_CALLS]", Dialect("mistral"), (TOOL,), "A[TOOL_CALLS]B"),
        ("[TOOL_CALLS]", Dialect("mistral"), (), "AB"),
        ("<|python_tag|>", Dialect("llama3"), (TOOL,), "A<|python_tag|>B"),
        ("<|python_tag|>", Dialect("hermes"), (TOOL,), "AB"),
        ("[THINK]", Dialect("mistral", "mistral"), (), "A[THINK]B"),
        ("[THINK]", Dialect(), (), "AB"),
    ],
)
async def test_a_hidden_mark(mark, dialect, tools, text):
    assert await shown(mark, dialect, tools) == text


async def test_a_mark_that_has_its_text_is_left_alone():
    marks = await Marks.of(FakeTokenizer(), Dialect("hermes", "think"))
    assert marks._all == {}


async def test_an_output_begins_with_what_the_prompt_opened(house, read, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}{{ '<think>\n' }}")
    await house.worker(FakeEngine(tick=0), chat_template=str(template))
    plane = await house.plane()
    text, tokens, _ = await read(await plane.owner.open(house.job()))
    assert text.startswith("<think>\n")
    assert text.count("<think>") == 1
    assert len(tokens) == 40
    (card,) = await plane.directory.list()
    assert (card.tool_parser, card.reasoning_parser) == ("json", "think")


def test_a_run_that_goes_on_elsewhere_has_the_opening_once():
    job = Job(id="j", pool="m", model="m", kind="chat")

    def run():
        return Run(
            Assignment(job, 1, "api", None, cancelled=False),
            SimpleNamespace(worker="w"),
            prompt=(1,),
            prompt_hash="p",
            detokenizer=FakeTokenizer().detokenizer(),
            piece=FakeTokenizer().piece,
            opening="<think>\n",
        )

    first, second = run(), run()
    first.feed((72, 105), None)
    assert first.text == "<think>\nHi"
    second.restore(
        Continuation(tokens=(72, 105), chars=first.chars, prompt_hash="p", fingerprint="")
    )
    second.feed((33,), None)
    assert second.delta().text == "!"
    assert second.text == "<think>\nHi!"
