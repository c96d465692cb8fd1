"""What is tied to a process ends with it, and nothing else does."""

import subprocess
import sys
from pathlib import Path

import pytest

from queueserve import tether
from queueserve.tether import Tether

BOUND = 60.0  # seconds
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
WAITS = "print(flush=True); import time; time.sleep(600)"


@pytest.fixture
def start():
    """Start Python with this code; gives the process when it has printed a line."""
    started = []

    def start(code):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def lose_parent(tied):
    """As when the parent is killed: the kernel closes its end of the pipe."""
    tied._shell.stdin.close()
    tied._shell.wait(BOUND)


@pytest.mark.parametrize("code, status", [(WAITS, -15), (DEAF + WAITS, -9)], ids=["TERM", "KILL"])
def test_the_process_ends_with_its_parent(start, code, status):
    process = start(code)
    lose_parent(Tether(process.pid, grace=1))
    assert process.wait(BOUND) == status


def test_what_is_released_is_left_alone(start):
    process = start(WAITS)
    with Tether(process.pid, grace=0):
        pass
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc tells when it started")
def test_another_process_that_has_the_number_by_now_is_left_alone(start, monkeypatch):
    process = start(WAITS)
    monkeypatch.setattr(tether, "_born", lambda _: "1")
    lose_parent(Tether(process.pid, grace=0))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
