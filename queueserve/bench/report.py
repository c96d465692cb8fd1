"""What a load run showed, as numbers and as text."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any

from queueserve.bench.answer import Answer
from queueserve.bench.generator import Load

_CUTS = (50, 90, 99)
_MS = 1000.0


def percentile(ordered: array[float], percent: float, *, zeros: int = 0) -> float:
    """The nearest-rank percentile of sorted values and as many zeros before them; 0 for none."""
    rank = math.ceil((len(ordered) + zeros) * percent / 100) - 1 - zeros
    return ordered[rank] if ordered and rank >= 0 else 0.0


def _spread(seconds: Iterable[float], *, zeros: int = 0) -> dict[str, float]:
    ordered = array("d", sorted(seconds))
    cuts = {f"p{cut}": percentile(ordered, cut, zeros=zeros) * _MS for cut in _CUTS}
    return cuts | {"max": ordered[-1] * _MS if ordered else 0.0}


def summary(load: Load) -> dict[str, Any]:
    """Rates per second and times in milliseconds, of the answers that were good.

    `tokens` are the server's own count where it gives one, else the events with text. `gap_ms` is
    between tokens as the client reads them: those that came in one read have none.
    """
    good = [answer for answer in load.answers if not answer.error]
    seconds = max(load.ended - load.began, 1e-9)
    tokens = sum(answer.tokens or answer.chunks for answer in good)
    chunks, writes = (sum(getattr(answer, name) for answer in good) for name in _COUNTS)
    together = sum(answer.together for answer in good)
    return {
        "seconds": seconds,
        "requests": len(good),
        "failed": len(load.answers) - len(good),
        "errors": dict(Counter(answer.error for answer in load.answers if answer.error)),
        "tokens": tokens,
        "chunks": chunks,
        "requests_per_s": len(good) / seconds,
        "tokens_per_s": tokens / seconds,
        "chunks_per_write": chunks / writes if writes else 0.0,
        "ttft_ms": _spread(_first(answer) for answer in good),
        "gap_ms": _spread((gap for answer in good for gap in answer.gaps), zeros=together),
        "whole_ms": _spread(_whole(answer) for answer in good),
    }


_COUNTS = ("chunks", "writes")


def _first(answer: Answer) -> float:
    return (answer.first or answer.began) - answer.began


def _whole(answer: Answer) -> float:
    return (answer.ended or answer.began) - answer.began


def render(numbers: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"{numbers['requests']} requests in {numbers['seconds']:.1f} s, {numbers['failed']} failed",
        f"{numbers['requests_per_s']:.1f} requests/s, {numbers['tokens_per_s']:.0f} tokens/s",
        "",
        f"{'milliseconds':<22}" + "".join(f"{cut:>10}" for cut in ("p50", "p90", "p99", "max")),
    ]
    for name, title in (
        ("ttft_ms", "first token"),
        ("gap_ms", "between tokens"),
        ("whole_ms", "whole answer"),
    ):
        lines.append(f"{title:<22}" + "".join(f"{value:10.2f}" for value in numbers[name].values()))
    lines += [f"{count} x {error}" for error, count in numbers["errors"].items()]
    return "\n".join(lines)
