"""The table of docs/api.md is what the engines say; `make api-table` writes it anew."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fields import ROWS, request

from queueserve.api.app import create_app
from queueserve.settings import ApiSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
WRITE = "QUEUESERVE_WRITE_API_TABLE"
CHAT = {
    "llama_cpp": ("--engine", "llama_cpp"),
    "transformers": ("--engine", "transformers"),
    "fake": ("--engine", "fake", "--fake-tick", "0", "--context-length", "2048"),
}
VECTORS = {"transformers": ("--model-path", "minilm")}
COLUMNS = {
    endpoint: VECTORS if endpoint in {"/v1/embeddings", "/v1/rerank", "/v1/score"} else CHAT
    for endpoint in ROWS
}
_AT_ONCE = 12  # requests: four for each engine
_LONGEST = 60  # characters of an example
NOT_IN_TABLE = {"model", "messages"}  # every request has them


def known_fields(endpoint: str) -> set[str]:
    document = create_app(ApiSettings()).openapi()
    content = document["paths"][endpoint]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    return set(document["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize("endpoint", ROWS)
def test_the_table_has_every_field_that_the_api_knows(endpoint):
    assert {field for field, _ in ROWS[endpoint]} == known_fields(endpoint) - NOT_IN_TABLE


def verdict(answer: httpx.Response) -> str:
    """What a cell of the table says of an answer: yes, or the error."""
    if answer.is_success and '"error":' not in answer.text.replace('"error":null', ""):
        return "yes"
    error = answer.json()["error"]
    return f"{answer.status_code} {error.get('code', error['type'])}"


def measured(url: str) -> str:
    """The table, from requests to models that are called as their engines."""
    with httpx.Client(base_url=url, timeout=300) as client, ThreadPoolExecutor(_AT_ONCE) as pool:

        def cell(endpoint: str, field: str, value: Any, model: str) -> str:
            body = request(endpoint, field, value) | {"model": model}
            return verdict(client.post(endpoint, json=body))

        asked = [
            (
                endpoint,
                field,
                value,
                [
                    pool.submit(cell, endpoint, field, value, model_name(engine, COLUMNS[endpoint]))
                    for engine in COLUMNS[endpoint]
                ],
            )
            for endpoint, rows in ROWS.items()
            for field, value in rows
        ]
        lines: list[str] = []
        for endpoint, group in groupby(asked, key=lambda row: row[0]):
            heads = ("field", "for example", *COLUMNS[endpoint])
            lines += [f"### POST {endpoint}", "", line(heads), "|---" * len(heads) + "|"]
            lines += [
                line((field, f"`{shown(value)}`", *(cell.result() for cell in cells)))
                for _, field, value, cells in group
            ]
            lines.append("")
    return "\n".join(lines)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(value: Any) -> str:
    text = json.dumps(value).replace("|", "\\|")
    return text if len(text) < _LONGEST else f"{text[: _LONGEST - 4]} …"


def model_name(engine: str, columns) -> str:
    return engine if columns is CHAT else f"{engine}-vectors"


def written() -> tuple[str, str, str]:
    """The document: before the table, the table, after it."""
    found = re.fullmatch(
        r"(.*<!-- table -->\n)(.*)(<!-- end of table -->.*)", DOCUMENT.read_text(), re.DOTALL
    )
    assert found
    return found[1], found[2], found[3]


@pytest.mark.timeout(600)
def test_the_table_is_what_the_engines_say(cluster, models_dir):
    url, _ = cluster.api()
    for columns in (CHAT, VECTORS):
        for engine, options in columns.items():
            data = () if engine == "fake" else ("--data-dir", str(models_dir))
            cluster.worker(*options, *data, model=model_name(engine, columns))
    table = measured(url)
    before, there, after = written()
    if WRITE in os.environ:
        DOCUMENT.write_text(before + table + after)
    else:
        assert there == table, f"make api-table writes it anew:\n{table}"
