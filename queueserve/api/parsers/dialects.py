"""How families of models write tool calls.

    hermes   <tool_call>{"name": "f", "arguments": {…}}</tool_call>, any number of them
    llama3   {"name": "f", "parameters": {…}}, after <|python_tag|> or as the whole answer, with ;
             between several
    mistral  [TOOL_CALLS] [{"name": "f", "arguments": {…}}, …], and the newer form
             [TOOL_CALLS]f[ARGS]{…}, once a call
    json     the objects of hermes or llama3, or a list of them, as the whole answer, perhaps fenced
    calls    json of output that is bound to be calls

Sources: the chat templates of NousResearch/Hermes-3, Qwen/Qwen3, meta-llama/Llama-3.1 and
mistralai/Mistral-Small-3.2, which write earlier calls as the model is to write the next.
"""

from __future__ import annotations

import re

from queueserve.api.parsers.calls import read_call, stream_call
from queueserve.api.parsers.incremental import IncrementalParser
from queueserve.api.parsers.pieces import Content, Piece
from queueserve.api.parsers.source import MalformedError, Reading


class ToolParser(IncrementalParser):
    """Finds tool calls. `names` are those of the request's tools."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names

    def _give(self, piece: Piece) -> None:
        self._pieces.append(piece)

    def _content(self, text: str) -> None:
        self._give(Content(text))

    def _as_content(self) -> None:
        """Give out what looked like a call and is none."""
        self._content(self._source.marked())

    def _rest(self) -> Reading[None]:
        """Give out all that follows as content."""
        while (yield from self._source.more()):
            self._content(self._source.rest())

    def _series(self, names: frozenset[str] | None = None) -> Reading[None]:
        """Read calls one after the other, in brackets or not.

        Raises MalformedError with the text of the one that is none marked.
        """
        source = self._source
        listed = yield from source.literal("[")
        while True:
            yield from read_call(source, self._give, names)
            source.mark()
            yield from source.space()
            separated = yield from source.literal(",")
            if listed and not separated:
                yield from source.expect("]")
                break
            if not (listed or separated):
                yield from source.literal(";")
            yield from source.space()
            if not listed and (yield from source.peek()) != "{":
                break
        text = source.marked()
        self._content("" if listed else text.lstrip(" \t\n;,"))


class Hermes(ToolParser):
    """Hermes, Qwen 2.5 and 3, and models trained like them."""

    def _parse(self) -> Reading[None]:
        source = self._source
        while (yield from source.until("<tool_call>", self._content)):
            try:
                yield from read_call(source, self._give)
            except MalformedError:
                self._as_content()
                continue
            yield from source.space()
            yield from source.literal("</tool_call>")
            yield from source.space()


class Llama3(ToolParser):
    """Llama 3.1 and later. Without the tag, only a tool of the request is a call."""

    def _parse(self) -> Reading[None]:
        source = self._source
        source.mark()
        yield from source.space()
        tagged = yield from source.literal("<|python_tag|>")
        while True:
            try:
                yield from source.space()
                yield from self._series(None if tagged else self._names)
            except MalformedError:
                self._as_content()
            tagged = yield from source.until("<|python_tag|>", self._content)
            if not tagged:
                return


class Mistral(ToolParser):
    """Mistral's models, of both generations."""

    _LETTERS = re.compile(r"[\w.\-]", re.ASCII)

    def _parse(self) -> Reading[None]:
        source = self._source
        while (yield from source.until("[TOOL_CALLS]", self._content)):
            try:
                yield from source.space()
                in_json = (yield from source.peek()) in ("[", "{")
                yield from self._series() if in_json else self._named()
                yield from source.space()
            except MalformedError:
                self._as_content()

    def _named(self) -> Reading[None]:
        source = self._source
        name = yield from source.word(self._LETTERS)
        if (yield from source.literal("[CALL_ID]")):
            yield from source.word(self._LETTERS)
        yield from source.literal("[ARGS]")
        yield from source.space()
        if not name or (yield from source.peek()) != "{":
            raise MalformedError
        yield from stream_call(source, self._give, name)


class Json(ToolParser):
    """Models without a dialect of their own, and output that may be calls or an answer in JSON."""

    def _parse(self) -> Reading[None]:
        source = self._source
        source.mark()
        yield from source.space()
        fenced = yield from source.literal("```")
        if fenced:
            yield from source.literal("json")
        try:
            yield from source.space()
            yield from self._series(self._names)
            yield from source.space()
            if fenced:
                yield from source.literal("```")
                yield from source.space()
        except MalformedError:
            self._as_content()
        yield from self._rest()


class Calls(Json):
    """Output that is bound to be calls: it has no content, whatever it breaks off in."""

    def _as_content(self) -> None:
        """Leave out the beginning of a call that did not come to its arguments."""
        if self._source.ended:
            self._source.forget()
        else:
            super()._as_content()
