"""Books: what outputs that are bound to a schema are, and how they begin.

Judged by readers of JSON and of schemas alone, as the tests are about what binds outputs.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version

import jsonschema

BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 16},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["title", "year", "tags"],
    "additionalProperties": False,
}
_VALIDATOR = jsonschema.Draft202012Validator(BOOK)  # `validate` would look at BOOK each time, too
_WHOLE = [rf'{{"title":"\u0041","year":{year},"tags":["a"]}}' for year in (1900, 2000)]
_ENDS = {whole[at:] for whole in _WHOLE for at in range(len(whole) + 1)}
# White space is a line break and 16 spaces at most; before llguidance 1.8, which vLLM and SGLang do
# not bring yet, that may come again and again.
_BOUNDED = tuple(map(int, version("llguidance").split(".")[:2])) >= (1, 8)
_TOO_LONG = re.compile(r"\s{18}")


def is_book(text: str) -> bool:
    """Whether a text is a book; white space does not matter."""
    try:
        return _VALIDATOR.is_valid(json.loads(text, object_pairs_hook=_each_once))
    except ValueError:
        return False


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Raise ValueError for a name that comes twice: an end must not mend a wrong value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(pairs)
    return found


def begins_a_book(text: str) -> bool:
    """Whether a book can begin so, or is so, with white space of no more than our grammars allow.

    One of 16 escapes and all that white space has more than 400 characters, each of which may take
    a token: a bound on an output's length may come before its end.
    """
    if _BOUNDED and _TOO_LONG.search(text):
        return False
    return any(is_book(text + end) for end in _ENDS)
