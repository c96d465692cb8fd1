import json
import logging
import subprocess
import sys

import pytest

from queueserve.logs import Sparse

SCRIPT = """
import logging, sys
from queueserve import logs

logs.configure(*sys.argv[1:])
log = logging.getLogger("queueserve.up")
log.debug("quiet")
log.warning("worker %d died", 1, extra={"pid": 7, "code": -9})
try:
    {}["x"]
except KeyError:
    log.exception("oops")
logging.getLogger("httpx").info("GET /ready")
"""


@pytest.fixture
def logged():
    """What a process that is configured so writes: stdout and stderr."""

    def run(*arguments: str) -> tuple[str, str]:
        command = [sys.executable, "-c", SCRIPT, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    return run


def test_lines_for_people(logged):
    out, err = logged("info", "text")
    assert out == ""
    first, second, *traceback = err.splitlines()
    assert first[12:] == " warning queueserve.up: worker 1 died pid=7 code=-9"
    assert second[12:] == " error queueserve.up: oops"
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "KeyError: 'x'"


def test_json_lines(logged):
    out, err = logged("info", "json")
    assert out == ""
    first, second = map(json.loads, err.splitlines())
    assert first.pop("time") > 1.7e9
    assert first == {
        "level": "warning",
        "logger": "queueserve.up",
        "message": "worker 1 died",
        "pid": 7,
        "code": -9,
    }
    assert second["exception"].endswith("KeyError: 'x'")


def test_the_level_decides_what_is_said(logged):
    assert "quiet" in logged("debug", "text")[1]
    assert "worker 1 died" not in logged("error", "text")[1]


@pytest.mark.parametrize("level", ["debug", "info"])
def test_libraries_that_repeat_every_request_are_quiet(logged, level):
    assert "GET /ready" not in logged(level, "text")[1]


def test_what_anybody_can_send_is_logged_once_a_minute():
    def passed(handler: Sparse) -> list[dict]:
        records = [
            logging.LogRecord("n", logging.WARNING, "f", line, "m", (), None)
            for line in (1, 1, 1, 2)
        ]
        for record in records:
            record.sparse = True
        return [vars(record) for record in records if handler.filter(record)]

    handler = Sparse(every=60.0)
    assert [record["lineno"] for record in passed(handler)] == [1, 2]
    assert passed(handler) == []
    handler._every = 0.0
    assert [record.get("more") for record in passed(handler)] == [5, None, None, 1]
    plain = logging.LogRecord("n", logging.WARNING, "f", 1, "m", (), None)
    assert all(Sparse().filter(plain) for _ in range(3))


def test_each_handler_with_the_filter_is_spared():
    filters = [Sparse(), Sparse()]
    heard = []
    for _ in range(3):
        record = logging.LogRecord("n", logging.WARNING, "f", 1, "m", (), None)
        record.sparse = True
        heard.append([one.filter(record) for one in filters])
    assert heard == [[True, True], [False, False], [False, False]]
