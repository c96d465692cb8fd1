"""Logging, configured once by the command that runs: lines for people, or JSON lines.

Everything goes to stderr, so that stdout stays for answers. Fields given as `extra={…}` are shown
as `name=value` behind the message, or as members of the JSON object.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Literal, TypeAlias, get_args

import orjson

LogFormat: TypeAlias = Literal["text", "json"]
FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)
LEVELS = ("debug", "info", "warning", "error")

_CHATTY = ("httpcore", "httpx", "asyncio")
"""Libraries whose info lines repeat, request by request, what ours already say."""


def configure(level: str = "info", log_format: LogFormat = "text") -> None:
    """Send all logging of this process to stderr; replaces what was configured before.

    `level` is one of LEVELS.
    """
    handler = logging.StreamHandler()
    handler.addFilter(Sparse())
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


class Sparse(logging.Filter):
    """Lets a record with `extra={"sparse": True}` through once a minute for each place in the code.

    What anybody can send, as often as they like, must not fill the log. The next record that passes
    says in its field `more` how many were held back.
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        self._every = every
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write this record."""
        if not getattr(record, "sparse", False):
            return True
        place, now = (record.name, record.lineno), time.monotonic()
        last, held = self._seen.get(place, (-self._every, 0))
        if now - last < self._every:
            self._seen[place] = (last, held + 1)
            return False
        self._seen[place] = (now, 0)
        if held:
            record.more = held
        return True


class TextFormatter(logging.Formatter):
    """`12:30:01.250 warning queueserve.up: worker 1 died pid=7 code=-9`."""

    default_time_format = "%H:%M:%S"
    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(level)s %(name)s: %(message)s%(fields)s")

    def format(self, record: logging.LogRecord) -> str:
        """Give one line, and a traceback below it if the record has one."""
        record.level = record.levelname.lower()
        record.fields = "".join(f" {name}={value}" for name, value in _extra(record).items())
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (Unix seconds), level, logger, message, the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the record as JSON; an extra field that JSON does not know becomes text."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {
    "asctime",
    "color_message",  # uvicorn's, the message once more
    "fields",
    "level",
    "message",
    "sparse",  # for the filter, of which each handler may have one
    "taskName",
}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
