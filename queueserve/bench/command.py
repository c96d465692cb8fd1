"""`queueserve bench`: run a plan, show how far it is, tell what it showed."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import click
import orjson
import uvloop

from queueserve.bench.answer import Answer
from queueserve.bench.generator import Generator, LoadError, Plan
from queueserve.bench.report import render, summary

_SHOW_EVERY = 0.2  # seconds


class _Progress:
    """Moves a bar: by requests, or by time."""

    def __init__(self, plan: Plan, bar: Any) -> None:
        self._plan = plan
        self._bar = bar
        self._began = self._shown = time.monotonic()
        self._done = self._told = 0

    def ended(self, _answer: Answer) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._shown < _SHOW_EVERY:
            return
        self._shown = now
        self._bar.label = f"{self._done / (now - self._began):.0f} requests/s"
        at = self._done if self._plan.requests else int(now - self._began)
        self._bar.update(at - self._told)
        self._told = at


def run(plan: Plan, *, as_json: bool) -> str:
    """Run the plan and return the report; a bar goes to stderr. Raises LoadError."""
    length = plan.requests or int(plan.duration or 0)
    gc.disable()  # answers are kept to the end, and a pause of ours would look like one of theirs
    with _bar(length, hidden=as_json or not sys.stderr.isatty()) as bar:
        progress: Callable[[Answer], None] = _Progress(plan, bar).ended
        load = uvloop.run(Generator(plan).run(progress))
    gc.enable()
    numbers = summary(load)
    if not numbers["requests"]:
        why = next(iter(numbers["errors"]), "none was made")
        raise LoadError(f"no request was answered: {why}")
    numbers["cpu_s"] = time.process_time()
    return orjson.dumps(numbers).decode() if as_json else render(numbers)


def _bar(length: int, *, hidden: bool) -> AbstractContextManager[Any]:
    return click.progressbar(length=length, hidden=hidden, file=sys.stderr)
