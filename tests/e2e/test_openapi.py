"""/openapi.json as schemathesis reads it: thousands of requests, made from it and against it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SEED = 7
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


@pytest.fixture
def document(cluster, tmp_path):
    """The server's address, and its document in a file, with the one model that it serves."""
    url, _ = cluster.api("--queue-timeout", "5", "--request-timeout", "10")
    cluster.worker(*("--engine", "fake", "--fake-tick", "0", "--context-length", "256"))
    told = httpx.get(f"{url}/openapi.json").json()
    for schema in told["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": ["m"]}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(told))
    return url, path


@pytest.mark.timeout(600)
def test_no_request_made_from_the_document_breaks_the_server_or_the_document(document, tmp_path):
    url, path = document
    script = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            *(script, "run", path, "--url", url, "--checks", ",".join(CHECKS)),
            *("--phases", "coverage,fuzzing", "--max-examples", "10", "--seed", str(SEED)),
            *("--continue-on-failure", "--request-timeout", "90", "--warnings", "off"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,  # it keeps a cache where it runs
        timeout=580,  # a busy machine has needed four minutes
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert httpx.get(f"{url}/ready").is_success
