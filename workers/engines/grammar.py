"""Constraints as token masks: llguidance compiles them, and a matcher follows each sequence.

All constraints become one language, llguidance's dialect of Lark, so that an output is valid in the
same sense on every engine. llguidance is imported with the first constraint only.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from queueserve.errors import EngineError, InvalidRequestError, QueueServeError
from queueserve.protocol import Constraint
from queueserve.subschemas import changed
from workers.engines.grammar_limits import check_grammar, check_schema, with_large_stack

_Library: TypeAlias = Any  # llguidance; its LLMatcher and LLTokenizer are Rust

_CACHED = 64  # compiled grammars; one takes some 10 to 1,000 kB
# Small models write white space without end where the grammar lets them.
_WHITESPACE = r"( |\n {0,16})?"
_MOST = 2**53 - 1
_BOUNDS = {
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "enum",
    "const",
}
_SPECIAL = b"\xff<%d>"  # llguidance's mark of a token that is no text
_EXCERPT = re.compile(r"\n *\d+ \|.*|\n<state>.*", re.DOTALL)
_PLACE = re.compile(r"^(at )?\d+\(\d+\): ")


def to_lark(constraint: Constraint) -> str:
    """The grammar of everything that satisfies the constraint. Raises InvalidRequestError.

    The syntax is https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.
    """
    try:
        return _WRITERS[constraint.kind](constraint.value)
    except QueueServeError:
        raise
    except Exception as error:  # a grammar of a client meets parsers that raise what they like
        raise InvalidRequestError(
            f"this {constraint.kind} cannot be read: {error}", param=constraint.param
        ) from error


def _json_schema(text: str) -> str:
    schema = json.loads(text)
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise TypeError("a schema is an object")
    check_schema(schema)
    options = {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
    return f"start: %json {json.dumps(_bounded(schema) | options)}"


def _bounded(schema: Any) -> Any:
    """The schema with bounds for integers that have none: small models write digits without end.

    They are those of the integers that all readers of JSON know (RFC 8259, section 6).
    """
    if not isinstance(schema, dict):
        return schema
    bounded = changed(schema, _bounded)
    if schema.get("type") in ("integer", ["integer", "null"]) and not _BOUNDS & schema.keys():
        bounded |= {"minimum": -_MOST, "maximum": _MOST}
    return bounded


def _regex(text: str) -> str:
    # "d": \d is [0-9], as in JavaScript and JSON Schema, not all digits that Unicode has.
    return f"start: /{_library('llguidance').regex_to_lark(text, 'd')}/"


def _choice(text: str) -> str:
    texts = json.loads(text)
    if not (isinstance(texts, list) and texts and all(isinstance(one, str) for one in texts)):
        raise TypeError("choices are a list of texts, at least one")
    return "start: " + " | ".join(map(json.dumps, texts))


def _grammar(text: str) -> str:
    lark = str(_library("llguidance.gbnf_to_lark").any_to_lark(text)).strip()
    check_grammar(lark)
    return lark


_WRITERS: dict[str, Callable[[str], str]] = {
    "json_object": lambda _: _json_schema('{"type": "object"}'),
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}


def _library(name: str) -> _Library:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(
            f"this worker cannot constrain its output ({error}): pip install llguidance"
        ) from error


def _unusable(constraint: Constraint, problem: str) -> InvalidRequestError:
    problem = " ".join(_PLACE.sub("", _EXCERPT.sub("", problem)).split())
    if problem.startswith("NoExtension"):
        problem = "nothing satisfies it"
    elif "ff_tokens" in problem:
        problem = "it forces text that has no end, or is very long"
    return InvalidRequestError(
        f"this {constraint.kind} cannot be used: {problem}", param=constraint.param
    )


class Matcher:
    """Follows one sequence's output through a grammar."""

    def __init__(self, compiled: Any, ends: frozenset[int], constraint: Constraint) -> None:
        self._matcher = compiled
        self._constraint = constraint
        self.ends = ends

    @property
    def complete(self) -> bool:
        """Whether the output may end here."""
        return bool(self._matcher.is_accepting())

    def accept(self, token: int) -> bool:
        """Take the next output token in; False, and nothing changes, if the grammar forbids it.

        Tokens that end a sequence are not part of its output.
        """
        return token not in self.ends and self._matcher.try_consume_tokens([token]) == 1

    def allowed(self, *, but: Iterable[int] = ()) -> bytes:
        """A byte for each token of the vocabulary, 0 if it may not come next.

        Tokens in `but` may not come either, unless nothing else is left. Raises InvalidRequestError
        where llguidance gives up: the grammar is too complex.
        """
        mask: bytes = self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise _unusable(self._constraint, self._matcher.get_error())
        rest = bytearray(mask)
        for token in but:
            if token < len(rest):
                rest[token] = 0
        return bytes(rest) if any(rest) else mask


class Grammars:
    """Compiles constraints for one vocabulary, and keeps the last ones.

    `pieces` gives the bytes of every token, empty for one that is no text; `ends` are the tokens
    that end a sequence. Threads may share it.
    """

    def __init__(self, pieces: Callable[[], Sequence[bytes]], ends: frozenset[int]) -> None:
        self._pieces = pieces
        self._ends = ends
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()

    def matcher(self, constraint: Constraint, generated: Sequence[int] = ()) -> Matcher:
        """A new matcher that has seen the tokens `generated`. Takes milliseconds to a second.

        Raises InvalidRequestError for a constraint that does not compile, and EngineError if
        `generated` does not satisfy it.
        """
        with self._lock:
            compiled = self._compiled.get(constraint)
            if compiled is None:
                compiled = self._compiled[constraint] = with_large_stack(
                    lambda: self._compile(constraint)
                )
            self._compiled.move_to_end(constraint)
            if len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
            matcher = Matcher(compiled.deep_copy(), self._ends, constraint)
        if not all(map(matcher.accept, generated)):
            raise EngineError("the output so far does not satisfy the constraint")
        return matcher

    def _compile(self, constraint: Constraint) -> Any:
        library = _library("llguidance")
        lark = to_lark(constraint)
        if self._tokenizer is None:
            self._tokenizer = self._new_tokenizer(library)
        compiled = library.LLMatcher(self._tokenizer, lark, log_level=0)
        trial = compiled.deep_copy()
        may_come = enumerate(trial.compute_logit_bias())
        first = [token for token, allowed in may_come if allowed and token not in self._ends][:1]
        trial.try_consume_tokens(first)  # it looks for the end of the text that must come then
        if problem := compiled.get_error() or trial.get_error():
            raise _unusable(constraint, problem)
        return compiled

    def _new_tokenizer(self, library: _Library) -> Any:
        pieces = self._pieces()
        special = [token for token, piece in enumerate(pieces) if not piece]
        ends = sorted(end for end in self._ends if end < len(pieces))
        if not ends:
            raise EngineError("a constraint needs a token that ends the output: the model has none")
        return library.LLTokenizer(
            library.TokenizerWrapper(_Vocabulary(pieces, special, ends[0])),
            n_vocab=len(pieces),
            eos_token=ends,
            slices=library.LLTokenizer.json_slices(),
        )


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, pieces: Sequence[bytes], special: list[int], end: int) -> None:
        self.eos_token_id = end
        self.special_token_ids = special
        self.tokens = [piece or _SPECIAL % token for token, piece in enumerate(pieces)]
        self._bytes = {piece[0]: token for token, piece in enumerate(pieces) if len(piece) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text, byte by byte: asked for only to force tokens, which we do not."""
        return [self._bytes[byte] for byte in text if byte in self._bytes]
