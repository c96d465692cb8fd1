"""What this process has skipped since it began, because it was not ours: counted, logged seldom."""

from __future__ import annotations

import logging
from collections import Counter

counts: Counter[str] = Counter()
"""Kind (`message`, `card`, …) → how many. A process has one, as it has one log."""


def skip(log: logging.Logger, kind: str, about: str) -> None:
    """Count something of `kind`, and say once a minute for each caller what was wrong with it."""
    counts[kind] += 1
    text = "skipped a %s (%d so far): %s"
    log.warning(text, kind, counts[kind], about, extra={"sparse": True}, stacklevel=2)
