"""Chat answers that are more than content: reasoning and tool calls, as OpenAI's objects. Pure.

A request that offers no tools, to a model without reasoning, is rendered by `render` and pays
nothing for what is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import orjson

from queueserve.api.generation import Batch
from queueserve.api.parsers import Arguments, Call, Content, Piece, Reasoning, joined
from queueserve.api.render import Chunks, Reply, Whole
from queueserve.api.tools import Parsing
from queueserve.protocol import Delta, Event, Finished, Started

_OPENING = {"role": "assistant", "content": None, "refusal": None}


class _Output:
    """One choice: what its parser finds in it, and how many tokens it took to think."""

    def __init__(self, parsing: Parsing) -> None:
        self._parser = parsing.parser()
        self._chars = 0
        self._tokens = 0
        self._thinks = False
        self._thought: int | None = None  # tokens

    def feed(self, text: str, tokens: int) -> list[Piece]:
        """Take a delta in."""
        pieces = self._parser.feed(text)
        self._chars += len(text)
        self._tokens += tokens
        self._thinks = self._thinks or any(isinstance(piece, Reasoning) for piece in pieces)
        if self._thought is None and self._parser.thought is not None:
            # Of several tokens in one delta, those after the reasoning are told by their share.
            after = self._chars - self._parser.thought
            self._thought = self._tokens - tokens * after // max(1, len(text))
        return pieces

    def end(self, event: Finished) -> list[Piece]:
        """Take the end in."""
        pieces = self.feed(event.text, event.seq - self._tokens)
        return joined([*pieces, *self._parser.end()])

    @property
    def cut(self) -> bool:
        """Whether its last call broke off."""
        return self._parser.cut

    @property
    def reasoning_tokens(self) -> int:
        """Tokens up to the end of the reasoning, its marks included."""
        if self._thought is not None:
            return self._thought
        return self._tokens if self._thinks else 0


class _Wording:
    """OpenAI's words for calls; `legacy` ones are those of `functions`."""

    def __init__(self, reply: Reply, parsing: Parsing) -> None:
        self._id = reply.id
        self._legacy = parsing.legacy

    def call_id(self, index: int, number: int) -> str:
        """Return a call's id. A retry that attaches to the same answer sees the same."""
        name = f"{self._id}:{index}:{number}".encode()
        return f"call_{blake2b(name, digest_size=12).hexdigest()}"

    def delta(self, index: int, number: int, piece: Reasoning | Call | Arguments) -> dict[str, Any]:
        """Return a chunk's delta; `number` counts the choice's calls from 0."""
        match piece:
            case Reasoning(text):
                return {"reasoning_content": text}
            case Call(name):
                function = {"name": name, "arguments": ""}
                head = {"id": self.call_id(index, number), "type": "function"}
            case Arguments(text):
                function, head = {"arguments": text}, {}
        if self._legacy:
            return {"function_call": function}
        return {"tool_calls": [{"index": number, **head, "function": function}]}

    def message(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return the whole message."""
        texts: dict[type[Piece], str] = {Content: "", Reasoning: ""}
        calls: list[dict[str, Any]] = []
        for piece in pieces:
            match piece:
                case Call(name):
                    head = {"id": self.call_id(index, len(calls)), "type": "function"}
                    calls.append({**head, "function": {"name": name, "arguments": ""}})
                case Arguments(text):
                    calls[-1]["function"]["arguments"] += text
                case _:
                    texts[type(piece)] += piece.text
        content = texts[Content] or (None if calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if texts[Reasoning]:
            message["reasoning_content"] = texts[Reasoning]
        if calls:
            message |= (
                {"function_call": calls[0]["function"]} if self._legacy else {"tool_calls": calls}
            )
        return message

    def reason(self, event: Finished, calls: int, *, cut: bool) -> str:
        """Return a choice's finish_reason. That of calls says that they are whole."""
        if event.finish_reason == "stop" and calls and not cut:
            return "function_call" if self._legacy else "tool_calls"
        return event.finish_reason


class ParsedWhole(Whole):
    """An answer in one piece."""

    def __init__(self, reply: Reply, parsing: Parsing) -> None:
        super().__init__(reply)
        self._wording = _Wording(reply, parsing)
        self._outputs = [_Output(parsing) for _ in range(reply.jobs)]
        self._pieces: list[list[Piece]] = [[] for _ in range(reply.jobs)]

    def _add(self, index: int, event: Event) -> None:
        match event:
            case Delta():
                self._pieces[index] += self._outputs[index].feed(event.text, len(event.tokens))
            case Started():
                self._tally.started(index, event)
                self._fingerprint = self._fingerprint or event.fingerprint
            case Finished():
                pieces = self._pieces[index]
                pieces += self._outputs[index].end(event)
                output = self._outputs[index]
                self._tally.finished(index, event, reasoning=output.reasoning_tokens)
                reason = self._wording.reason(event, _calls(pieces), cut=output.cut)
                self._reasons[index] = reason

    def choice(self, index: int) -> dict[str, Any]:
        """Return what one job has become."""
        return {
            "index": index,
            "message": self._wording.message(index, joined(self._pieces[index])),
            "logprobs": None,
            "finish_reason": self._reasons[index],
        }


class ParsedChunks(Chunks):
    """The events of a stream."""

    def __init__(self, reply: Reply, parsing: Parsing) -> None:
        super().__init__(reply)
        self._wording = _Wording(reply, parsing)
        self._outputs = [_Output(parsing) for _ in range(reply.jobs)]
        self._calls = [0] * reply.jobs

    def render(self, batch: Batch) -> bytes:
        """Return the frames for new events, one for each piece that they complete."""
        frames: list[bytes] = []
        for index, events in batch:
            for event in events:
                if isinstance(event, Delta):
                    pieces = self._outputs[index].feed(event.text, len(event.tokens))
                    frames += self._deltas(index, pieces)
                else:
                    frames += self._other(index, event)
        return b"".join(frames)

    def _other(self, index: int, event: Event) -> list[bytes]:
        match event:
            case Started():
                self._tally.started(index, event)
                self._fingerprint = self._fingerprint or event.fingerprint
                self._prefixes[index] = self._prefix(index)
                return [self._chunk(index, {"delta": _OPENING})]
            case Finished():
                output = self._outputs[index]
                frames = self._deltas(index, output.end(event))
                self._tally.finished(index, event, reasoning=output.reasoning_tokens)
                reason = self._wording.reason(event, self._calls[index], cut=output.cut)
                return [*frames, self._chunk(index, {"delta": {}}, reason)]
            case _:
                return []

    def _deltas(self, index: int, pieces: Sequence[Piece]) -> list[bytes]:
        frames: list[bytes] = []
        for piece in pieces:
            if isinstance(piece, Content):  # what most deltas are
                frames += (self._prefixes[index], orjson.dumps(piece.text), self._suffix)
                continue
            self._calls[index] += isinstance(piece, Call)
            delta = self._wording.delta(index, self._calls[index] - 1, piece)
            frames.append(self._chunk(index, {"delta": delta}))
        return frames


def _calls(pieces: Sequence[Piece]) -> int:
    return sum(isinstance(piece, Call) for piece in pieces)
