"""docs/reliability.md names tests, parts and faults: they are all there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness.__main__ import PARTS
from harness.faults import FAULTS

PAGE = "docs/reliability.md"
BELOW = {"queue": "queueserve/queue", "api": "queueserve/api"}


@pytest.fixture
def page(pytestconfig) -> str:
    return (pytestconfig.rootpath / PAGE).read_text()


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the table below `header`."""
    _, _, below = page.partition(f"{header}\n")
    table = below.partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if not line.startswith("|---")
    ]


def missing(root: Path, shown_by: str) -> str:
    """What is wrong with one entry of the last column; "" if nothing is."""
    if shown_by in PARTS:
        return ""
    if not (named := re.fullmatch(r"`([\w/]+)/(\w+\.py)::(test_\w+)`", shown_by)):
        return f"{shown_by} is no test"
    folder, name, test = named.groups()
    file = root / "tests" / BELOW.get(folder, folder) / name
    defined = re.compile(rf"^(async )?def {test}\(", re.MULTILINE)
    there = file.exists() and defined.search(file.read_text())
    return "" if there else f"{shown_by} is not there"


def test_every_row_of_the_matrix_names_tests_that_exist(page, pytestconfig):
    matrix = rows(page, "| who | when | what the client sees | shown by |")
    assert len(matrix) > 30
    found = [missing(pytestconfig.rootpath, each) for row in matrix for each in row[3].split(", ")]
    assert [each for each in found if each] == []


def test_every_fault_is_explained(page):
    told = {name for row in rows(page, "| fault | would show as |") for name in names(row[0])}
    assert {fault.name for fault in FAULTS} - told == set()


def names(cell: str) -> list[str]:
    """`worker: kill -9; SIGTERM` → `worker: kill -9`, `worker: SIGTERM`."""
    who, _, what = cell.partition(": ")
    return [f"{who}: {each}" for each in what.split("; ")]


def test_what_is_not_there_is_found(pytestconfig):
    root = pytestconfig.rootpath
    assert missing(root, "a part")
    assert missing(root, "`queue/test_submit.py::test_nothing`")
    assert missing(root, "`queue/test_nothing.py::test_submitting_twice_is_one_job`")
    assert not missing(root, "`queue/test_submit.py::test_submitting_twice_is_one_job`")
