"""LangChain's tests of embeddings against QueueServe with the real small model; all must pass.

.venv/bin/python tests/judges/run_embeddings.py --judge .venv/judges/bin/python
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from run_langchain import ALONE, HERE, free_port, ready, started

MODEL = "all-minilm-l6-v2"
BOUND = 300.0  # seconds for all tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", default=".venv/judges/bin/python")
    judge = parser.parse_args().judge
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        command = (
            *(sys.executable, "-m", "queueserve.cli", "up"),
            *("--engine", "transformers", "--model-path", "minilm", "--port", str(port)),
            *("--redis-port", str(free_port()), "--data-dir", str(folder / "data")),
        )
        with started(*command, log=folder / "queueserve.log"):
            url = ready(f"http://127.0.0.1:{port}", folder / "queueserve.log")
            return judged(judge, url)


def judged(judge: str, url: str) -> int:
    """Return pytest's exit status: 0 if all tests have passed."""
    done = subprocess.run(
        [
            *(judge, "-m", "pytest", "-q", "-rA", *ALONE),
            *("-o", "asyncio_mode=auto", "--disable-socket", "--allow-hosts=127.0.0.1"),
            *("-k", "TestEmbeddings", str(HERE / "langchain_embeddings.py")),
        ],
        env=os.environ | {"JUDGED_URL": url, "JUDGED_MODEL": MODEL, "LANGSMITH_TRACING": "false"},
        check=False,
        timeout=BOUND,
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
