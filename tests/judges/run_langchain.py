"""LangChain's tests of a chat model against QueueServe and llama.cpp's own server, side by side.

    .venv/bin/python tests/judges/run_langchain.py --judge .venv/judges/bin/python

Both serve the same small model. A weak model fails some tests whoever serves it: the exit status is
1 where a test passes on llama.cpp's server and not on ours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx

MODEL = "smollm2-135m-instruct"
# Structured output has classes of its own.
TESTS = (
    "(TestChat and not structured_output and not json_mode)"
    " or (TestSchema and (structured_output or json_mode))"
    " or (TestFunction and structured_output)"
)
# LangChain keeps its connections, so all tests must share one event loop.
ONE_LOOP = [
    f"asyncio_{part}=session" for part in ("default_fixture_loop_scope", "default_test_loop_scope")
]
HERE = Path(__file__).parent
# The project's own options and fixtures need what the judges do not bring.
ALONE = ["-c", os.devnull, "--rootdir", str(HERE), "--noconftest"]
READY_WITHIN = 120.0  # seconds
BOUND = 1800.0  # seconds for all tests on one server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(*command: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def queueserve(engine: str, folder: Path) -> Iterator[str]:
    port = free_port()
    options = ("--engine", engine, "--port", str(port), "--redis-port", str(free_port()))
    data = ("--data-dir", str(folder / "data"))
    command = (sys.executable, "-m", "queueserve.cli", "up", *options, *data)
    log = folder / "queueserve.log"
    with started(*command, log=log):
        yield ready(f"http://127.0.0.1:{port}", log)


def ready(url: str, log: Path) -> str:
    """Wait until the server is ready, and return where its API is."""
    until = time.monotonic() + READY_WITHIN
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/ready").is_success:
                return f"{url}/v1"
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


@contextlib.contextmanager
def llama_cpp(folder: Path) -> Iterator[str]:
    command = (sys.executable, str(HERE / "llama_cpp_server.py"))
    with started(*command, log=folder / "llama_cpp.log") as process:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1"


def judged(judge: str, url: str, options: list[str], folder: Path) -> dict[str, str]:
    """Return what came of each test: passed, skipped, or the first line of why it failed."""
    report = folder / "report.xml"
    subprocess.run(
        [
            *(judge, "-m", "pytest", "-v", "--tb=line", *ALONE),
            *("-k", TESTS, "-o", "asyncio_mode=auto", "-o", ONE_LOOP[0], "-o", ONE_LOOP[1]),
            *("--disable-socket", "--allow-hosts=127.0.0.1", "--junit-xml", str(report)),
            *(*options, str(HERE / "langchain_chat.py")),
        ],
        env=os.environ | {"JUDGED_URL": url, "JUDGED_MODEL": MODEL, "LANGSMITH_TRACING": "false"},
        stdout=sys.stderr,
        check=False,
        timeout=BOUND,
    )
    return dict(map(outcome, ET.parse(report).iter("testcase")))


def outcome(case: ET.Element) -> tuple[str, str]:
    name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            why = (found.get("message") or "").strip().splitlines() or [""]
            xfail = found.get("type") == "pytest.xfail"
            word = "expected to fail" if xfail else "skipped" if kind == "skipped" else "failed"
            return name, word if word != "failed" else f"failed: {why[0][:80]}"
    return name, "passed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", default=".venv/judges/bin/python")
    parser.add_argument("--engine", default="llama_cpp")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with queueserve(asked.engine, folder) as url:
            ours = judged(asked.judge, url, asked.pytest, folder)
        with llama_cpp(folder) as url:
            theirs = judged(asked.judge, url, asked.pytest, folder)
    return compared(ours, theirs)


def compared(ours: dict[str, str], theirs: dict[str, str]) -> int:
    print("| test | QueueServe | llama.cpp's server |\n|---|---|---|")
    for test in sorted(ours.keys() | theirs.keys()):
        print(f"| {test} | {ours.get(test, 'missing')} | {theirs.get(test, 'missing')} |")
    counts = [sum(one == "passed" for one in results.values()) for results in (ours, theirs)]
    print(f"\npassed: {counts[0]} on QueueServe, {counts[1]} on llama.cpp's server, of {len(ours)}")
    worse = [test for test in theirs if theirs[test] == "passed" != ours.get(test)]
    print("\n".join(f"only llama.cpp's server passes {test}" for test in worse))
    return 1 if worse or not counts[0] else 0


if __name__ == "__main__":
    sys.exit(main())
