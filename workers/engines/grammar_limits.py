"""How deep and how large a constraint may be: llguidance would end the process, or not come back.

Measured with llguidance 1.9: a level of a schema takes up to 6 KiB of the stack, a rule of a
grammar 5. What is let through fits into the 8 MiB that threads have (engines that compile a grammar
themselves do so on theirs), and `with_large_stack` leaves room for tenfold.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import unquote

T = TypeVar("T")

MAX_LEVELS = 1_000
MAX_COLONS = 1_000
MAX_ITEMS = 100_000
"""Of a schema's minItems and maxItems: llama.cpp counts up to them, a second for a million."""
MAX_DIVISOR = 100_000
"""Of what a schema's multipleOfs come to: 0.8 s at this bound, minutes at ten times as much."""
_STACK = 64 * 2**20  # bytes; they are only reserved, and taken as they are used


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that llguidance cannot work off. Raises ValueError."""
    _check_depth(schema)
    _check_numbers(schema)


def _check_depth(schema: dict[str, Any]) -> None:
    """Refuse a schema that is too deep where its references are followed.

    A chain of references meets each of them once at most. So the levels of the schema and of
    all that is referred to are a bound of its depth, without a search for the longest chain.
    """
    levels: dict[int, int] = {}
    refs: set[str] = set()
    whole = _measure(schema, levels, refs)
    elsewhere = '"$id"' in json.dumps(schema)  # references may start from another place
    total = whole
    for ref in refs:
        total += whole if elsewhere else levels.get(id(_target(schema, ref)), whole)
    if total > MAX_LEVELS:
        raise ValueError(
            f"with its {len(refs)} references followed it may be {total} levels deep,"
            f" and {MAX_LEVELS} are the most"
        )


def _check_numbers(schema: dict[str, Any]) -> None:
    """Refuse numbers that take too many states.

    Whether a number is divisible by 2 or 5 is told by its last digits, and takes few. All
    multipleOfs count as one, as it may be one value that they are said of.
    """
    divisor = 1
    for name, value in _members(schema):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name in ("minItems", "maxItems") and value > MAX_ITEMS:
            raise ValueError(f"{name} is {value}, and {MAX_ITEMS} are the most")
        if name == "multipleOf":
            divisor = math.lcm(divisor, _without_tens(value))
    if divisor > MAX_DIVISOR:
        raise ValueError(
            f"multipleOf comes to {divisor}, without its factors 2 and 5, and {MAX_DIVISOR} is"
            " the most"
        )


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Give all members of all objects in a value."""
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _members(part)


def _without_tens(number: float) -> int:
    """Return the digits of a number as an integer, without its factors 2 and 5; at least 1."""
    digits = int("".join(map(str, Decimal(str(number)).as_tuple().digits))) or 1
    for factor in (2, 5):
        while digits % factor == 0:
            digits //= factor
    return digits


def check_grammar(lark: str) -> None:
    """Refuse a grammar of a client that llguidance cannot work off. Raises ValueError.

    That is one that may have too many rules, or has a schema that `check_schema` refuses. Each rule
    has a colon, and so has each level of a schema within the grammar.
    """
    if (colons := lark.count(":")) > MAX_COLONS:
        raise ValueError(
            f"it has {colons} colons (one for each rule), and {MAX_COLONS} are the most"
        )
    for place in _SCHEMA.finditer(lark):
        with contextlib.suppress(json.JSONDecodeError):  # llguidance will say what is wrong
            schema, _end = _JSON.raw_decode(lark, place.end())
            check_schema(schema)


def with_large_stack(function: Callable[[], T]) -> T:
    """What `function` returns or raises; it is called on a thread with a large stack."""
    done: Future[T] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001  (raised by result)
            done.set_exception(error)

    with _starting:
        usual = threading.stack_size(_STACK)
        try:
            threading.Thread(target=call, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)
    return done.result()


_JSON = json.JSONDecoder()
_SCHEMA = re.compile(r"%json\s*(?={)")
_starting = threading.Lock()  # the size is the process's


def _measure(value: Any, levels: dict[int, int], refs: set[str]) -> int:
    """The levels of a value; those of all objects in it go to `levels`, by id."""
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str):
            refs.add(ref)
        parts = list(value.values())
    else:
        parts = value if isinstance(value, list) else []
    deepest = max((_measure(part, levels, refs) for part in parts), default=0)
    if isinstance(value, dict):
        levels[id(value)] = deepest + 1
    return deepest + isinstance(value, dict | list)


def _target(schema: Any, ref: str) -> Any:
    """What a JSON pointer (RFC 6901) refers to; None if it is no pointer into this schema."""
    base, _, pointer = ref.partition("#")
    if base:
        return None
    for name in unquote(pointer).split("/")[1:]:
        key = name.replace("~1", "/").replace("~0", "~")
        schema = schema.get(key) if isinstance(schema, dict) else None
    return schema
