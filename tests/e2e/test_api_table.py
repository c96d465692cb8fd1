"""The table of docs/api.md is what the engines say; `make api-table` writes it anew.

Each engine compares its own column where its library is installed: vLLM's and MLX's in
`make test-engines`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import api_table
import httpx
import pytest
from api_fields import ROWS, request
from api_table import COLUMNS, VECTORS, Cells
from gguf_copies import write_first_layer

from queueserve.api.app import create_app
from queueserve.settings import ApiSettings
from workers.models import resolve

WRITE = "QUEUESERVE_WRITE_API_TABLE" in os.environ
NOT_IN_TABLE = {"model", "messages"}  # every request has them
_AT_ONCE = 12  # requests
_LOADED = 500  # seconds until the models are there: vLLM takes a minute, on a busy machine eight
_SLOW = ("--heartbeat-timeout", "15")  # an engine that computes on all cores is not dead


@pytest.fixture(scope="module")
def openapi():
    return create_app(ApiSettings()).openapi()


@pytest.mark.parametrize("endpoint", ROWS)
def test_the_table_has_every_field_that_the_api_knows(openapi, endpoint):
    content = openapi["paths"][endpoint]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    known = set(openapi["components"]["schemas"][name]["properties"])
    assert {field for field, _ in ROWS[endpoint]} == known - NOT_IN_TABLE


def test_the_document_has_every_row_and_column():
    text, columns = api_table.written()
    places = [place for place, _, _ in api_table.rows()]
    assert len(places) == len(set(places))
    assert text == api_table.rendered(columns) or WRITE, "make api-table writes it anew"


def verdict(answer: httpx.Response) -> str:
    """What a cell of the table says of an answer: yes, or the error."""
    if answer.is_success and '"error":' not in answer.text.replace('"error":null', ""):
        return "yes"
    assert not answer.is_server_error, answer.text  # nothing that a table should promise
    error = answer.json()["error"]
    return f"{answer.status_code} {error.get('code', error['type'])}"


def measured(url: str, engine: str) -> Cells:
    """The column of an engine, from requests to its models."""
    with httpx.Client(base_url=url, timeout=300) as client, ThreadPoolExecutor(_AT_ONCE) as pool:

        def cell(row) -> str:
            (endpoint, _, _), field, value = row
            model = "vectors" if endpoint in VECTORS else "chat"
            body = request(endpoint, field, value) | {"model": model}
            return verdict(client.post(endpoint, json=body))

        asked = [row for row in api_table.rows() if engine in api_table.engines_at(row[0][0])]
        return {row[0]: said for row, said in zip(asked, pool.map(cell, asked), strict=True)}


@pytest.fixture
def api_url(cluster):
    return cluster.api(*_SLOW)[0]


@pytest.fixture
def nothing():
    return ()


@pytest.fixture
def another_queueserve(cluster, api_url):
    """One whose model is the fake engine's; the API server is the same."""
    cluster.worker(*COLUMNS["fake"].chat.split(), model="behind")
    return "--api-base", f"{api_url}/v1", "--model-path", "behind"


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """The first of the 30 layers of SmolLM2: its tokenizer and template, in a fifth of the time."""
    path = tmp_path_factory.mktemp("model") / "one-layer.gguf"
    write_first_layer(resolve(engine="transformers").path, path)
    return "--model-path", str(path)


@pytest.fixture(params=COLUMNS)
def engine(request, cluster, api_url, models_dir, until):
    """An engine whose workers have joined."""
    column = COLUMNS[request.param]
    if find_spec(column.module) is None:
        pytest.skip(f"{column.module} is not installed")
    workers = {"chat": (*request.getfixturevalue(column.model), *column.chat.split())}
    if column.vectors:
        workers["vectors"] = tuple(column.vectors.split())
    for model, options in workers.items():
        common = (*_SLOW, "--data-dir", str(models_dir))
        cluster.worker(*common, *options, model=model, wait=False)
    for model in workers:
        until(lambda model=model: cluster.workers(model), f"a worker of {model}", _LOADED)
    return request.param


@pytest.mark.timeout(900)
def test_a_column_is_what_its_engine_says(engine, api_url):
    said = measured(api_url, engine)
    _, columns = api_table.written()
    if WRITE:
        api_table.write(columns | {engine: said})
    else:
        assert columns[engine] == said, "make api-table writes it anew"
