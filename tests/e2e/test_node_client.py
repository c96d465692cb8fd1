"""The official openai client for Node, one test a feature: `node/openai.test.mjs`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).with_name("node")


@pytest.fixture(scope="session")
def node():
    """Node, with the client installed beside the tests."""
    if shutil.which("npm") is None:
        pytest.skip("node and npm are not on this machine; CI installs them")
    if not (HERE / "node_modules" / "openai").is_dir():
        install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(install, cwd=HERE, check=True, timeout=240)
    return shutil.which("node")


@pytest.mark.timeout(400)
def test_every_feature(node, up):
    names = {
        "QUEUESERVE_URL": f"{up.url}/v1",
        "CHAT_MODEL": up.chat,
        "EMBEDDING_MODEL": up.embeddings,
    }
    done = subprocess.run(
        [node, "--test", "--test-reporter", "spec", "openai.test.mjs"],
        cwd=HERE,
        env=os.environ | names,
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    assert done.returncode == 0, done.stdout
