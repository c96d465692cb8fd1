"""Whether this server could serve a request, said in the log when it changes."""

from __future__ import annotations

import logging

from queueserve.errors import QueueServeError

log = logging.getLogger(__name__)


class Readiness:
    """What the last probe has found. Probes come every few seconds; what stays is no news.

    Until it was ready once, what it lacks is no cause for worry: its workers may be loading.
    """

    def __init__(self) -> None:
        self._lacks: str | None = None  # the code of the error; None: nothing
        self._level = logging.INFO

    def found(self, error: QueueServeError | None) -> None:
        """Take in what a probe has found: the reason why no request could be served, or none."""
        lacks = None if error is None else error.code
        if lacks != self._lacks:
            self._lacks = lacks
            text = "ready" if error is None else f"not ready: {error.message}"
            log.log(self._level, text)
        if error is None:
            self._level = logging.WARNING
