"""How deep a constraint may go: llguidance follows it by recursion, and would end the process.

Measured with llguidance 1.9: a level of a schema takes up to 6 KiB of the stack, a rule of a
grammar 5. What is let through fits into the 8 MiB that threads have (engines that compile a grammar
themselves do so on theirs), and `with_large_stack` leaves room for tenfold.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import unquote

T = TypeVar("T")

MAX_LEVELS = 1_000
MAX_COLONS = 1_000
_STACK = 64 * 2**20  # bytes; they are only reserved, and taken as they are used


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that is too deep where its references are followed. Raises ValueError.

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


def check_grammar(lark: str) -> None:
    """Refuse a grammar of a client that may have too many rules. Raises ValueError.

    Each rule has a colon, and so has each level of a schema within the grammar.
    """
    if (colons := lark.count(":")) > MAX_COLONS:
        raise ValueError(
            f"it has {colons} colons (one for each rule), and {MAX_COLONS} are the most"
        )


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
