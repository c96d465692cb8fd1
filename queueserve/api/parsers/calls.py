"""A call as an object of JSON: `{"name": "f", "arguments": {…}}`, read as it grows."""

from __future__ import annotations

import json
from collections.abc import Callable

from queueserve.api.parsers.pieces import Arguments, Call, Content, Piece
from queueserve.api.parsers.source import MalformedError, Reading, Source

ARGUMENTS = ("arguments", "parameters")
_ALSO = ("id", "type")  # written by some models, and without a meaning here

Give = Callable[[Piece], None]


def read_call(source: Source, give: Give, names: frozenset[str] | None = None) -> Reading[None]:
    """Read one call and give out its pieces.

    With `names`, only they are calls. Raises MalformedError while nothing has been given out. From
    the beginning of the arguments on nothing is malformed: they end where their brackets do, and
    what follows in their place is content.
    """
    name: str | None = None
    held = ""  # arguments that came before the name, or are no object
    yield from source.expect("{")
    while True:
        yield from source.space()
        key = yield from _string(source)
        yield from source.expect(":")
        yield from source.space()
        if key == "name":
            name = yield from _string(source)
            if not name or (names is not None and name not in names):
                raise MalformedError
        elif key in ARGUMENTS and name is not None and (yield from source.peek()) == "{":
            yield from stream_call(source, give, name)
            yield from _remainder(source, give)
            return
        elif key in ARGUMENTS:
            held = yield from _value(source)
        elif key in _ALSO:
            yield from _value(source)
        else:
            raise MalformedError
        yield from source.space()
        if not (yield from source.literal(",")):
            break
    yield from source.expect("}")
    if name is None:
        raise MalformedError
    arguments = _object(held)
    source.forget()
    give(Call(name))
    give(Arguments(arguments))


def stream_call(source: Source, give: Give, name: str) -> Reading[None]:
    """Give out a call whose arguments, an object, come next. They may break off at the end."""
    source.forget()
    give(Call(name))
    try:
        yield from source.value(lambda text: give(Arguments(text)))
    except MalformedError:
        source.cut = True


def _remainder(source: Source, give: Give) -> Reading[None]:
    """Read what follows the arguments up to the end of the call's object."""
    source.mark()
    try:
        yield from source.space()
        while (yield from source.literal(",")):
            yield from source.space()
            yield from _string(source)
            yield from source.expect(":")
            yield from source.space()
            yield from _value(source)
            yield from source.space()
        yield from source.expect("}")
    except MalformedError:
        text = source.marked()
        give(Content(text if text.strip() else ""))
    source.forget()


def _value(source: Source) -> Reading[str]:
    parts: list[str] = []
    yield from source.value(parts.append)
    return "".join(parts)


def _string(source: Source) -> Reading[str]:
    if (yield from source.peek()) != '"':
        raise MalformedError
    text = _decoded((yield from _value(source)))
    if not isinstance(text, str):
        raise MalformedError
    return text


def _decoded(text: str) -> object:
    try:
        value = json.loads(text)
        if isinstance(value, str):
            value.encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise MalformedError from error
    return value


def _object(held: str) -> str:
    """Return the arguments as the text of an object. Some models write that text as a string."""
    if held in ("", "null"):
        return "{}"
    value = _decoded(held)
    if isinstance(value, dict):
        return held
    if isinstance(value, str) and isinstance(_decoded(value), dict):
        return value
    raise MalformedError
