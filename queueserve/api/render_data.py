"""Answers with data become the objects of their endpoints. Pure."""

from __future__ import annotations

import base64
from array import array
from dataclasses import dataclass, field
from typing import Any

import orjson

from queueserve.protocol import Answered


@dataclass(slots=True)
class Embeddings:
    """OpenAI's list of embeddings. A job's vectors become JSON when they come, not all at the end.

    `firsts` are the indices of the jobs' first items.
    """

    model: str
    firsts: list[int]
    base64: bool
    _parts: dict[int, bytes] = field(default_factory=dict)
    _tokens: int = 0

    def add(self, index: int, answered: Answered) -> None:
        """Take in the answer of a job."""
        self._tokens += answered.prompt_tokens
        first = self.firsts[index]
        rows = [
            {"object": "embedding", "index": first + at, "embedding": self._vector(row)}
            for at, row in enumerate(answered.rows)
        ]
        self._parts[index] = orjson.dumps(rows)[1:-1]

    def _vector(self, row: str) -> str | list[float]:
        return row if self.base64 else array("f", base64.b64decode(row)).tolist()

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        data = b",".join(self._parts[index] for index in range(len(self._parts)))
        rest = orjson.dumps({"model": self.model, "usage": _usage(self._tokens)})
        return b'{"object":"list","data":[' + data + b"]," + rest[1:]


@dataclass(slots=True)
class Rows:
    """The rows of all jobs, in the order of the items."""

    _parts: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    tokens: int = 0

    def add(self, index: int, answered: Answered) -> None:
        """Take in the answer of a job."""
        self._parts[index] = answered.rows
        self.tokens += answered.prompt_tokens

    @property
    def all(self) -> list[Any]:
        """All rows, once every job has answered."""
        return [row for index in range(len(self._parts)) for row in self._parts[index]]


@dataclass(slots=True)
class Ranking(Rows):
    """The order of documents, the best first: as Jina and Cohere have it."""

    id: str = ""
    model: str = ""
    texts: list[str] = field(default_factory=list)
    top: int | None = None  # None: all
    with_texts: bool = True

    def body(self) -> bytes:
        """Return the JSON of the answer. Equal scores stay in the order of the request."""
        scores = self.all
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = [self._result(index, scores[index]) for index in order[: self.top]]
        head = {"id": self.id, "model": self.model, "usage": _usage(self.tokens)}
        return orjson.dumps(head | {"results": results})

    def _result(self, index: int, score: float) -> dict[str, Any]:
        document = {"document": {"text": self.texts[index]}} if self.with_texts else {}
        return {"index": index, **document, "relevance_score": score}


@dataclass(slots=True)
class Scores(Rows):
    """The scores of pairs: as vLLM has it."""

    id: str = ""
    model: str = ""
    created: int = 0  # Unix seconds

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(self.all)
        ]
        head = {"id": self.id, "object": "list", "created": self.created, "model": self.model}
        return orjson.dumps(head | {"data": data, "usage": _usage(self.tokens)})


@dataclass(slots=True)
class Tokens(Rows):
    """The token ids of one prompt: as vLLM has it."""

    context_length: int = 0

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        [tokens] = self.all
        counts = {"count": len(tokens), "max_model_len": self.context_length}
        return orjson.dumps(counts | {"tokens": tokens, "token_strs": None})


@dataclass(slots=True)
class Text(Rows):
    """The text of token ids: as vLLM has it."""

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        [text] = self.all
        return orjson.dumps({"prompt": text})


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
