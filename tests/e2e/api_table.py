"""The table of docs/api.md: endpoint, field and example by engine, read and written as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from api_fields import ROWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
VECTORS = ("/v1/embeddings", "/v1/rerank", "/v1/score")
UNKNOWN = "not measured"
_LONGEST = 60  # characters of an example

Place: TypeAlias = tuple[str, str, str]
"""A row: its endpoint, its field, and the example as the table shows it."""

Cells: TypeAlias = dict[Place, str]
"""One engine's column."""


@dataclass(frozen=True)
class Column:
    """An engine of the table, and the options of the workers that speak for it."""

    module: str  # its library; where that is missing, the column is not measured
    chat: str
    vectors: str = ""  # for embeddings and scores; none: it has no such worker here
    model: str = "one_layer"  # a fixture that gives the chat worker's model, as options


COLUMNS = {
    "llama_cpp": Column("xllamacpp", "--engine llama_cpp"),
    "transformers": Column(
        "transformers", "--engine transformers", "--engine transformers --model-path minilm"
    ),
    "vllm": Column(
        "vllm",
        "--engine vllm --context-length 1024 -- --enforce-eager",
        "--engine vllm --model-path minilm -- --enforce-eager --runner pooling",
    ),
    "mlx": Column("mlx_lm", "--engine mlx --dtype float32"),
    "openai": Column("queueserve", "--engine openai", model="another_queueserve"),
    "fake": Column(
        "queueserve", "--engine fake --fake-tick 0 --context-length 2048", model="nothing"
    ),
}


def shown(value: Any) -> str:
    text = json.dumps(value).replace("|", "\\|")
    return f"`{text if len(text) < _LONGEST else f'{text[: _LONGEST - 4]} …'}`"


def rows() -> Iterator[tuple[Place, str, Any]]:
    """Every row, with its field and the value that stands behind the example."""
    for endpoint, fields in ROWS.items():
        for field, value in fields:
            yield (endpoint, field, shown(value)), field, value


def engines_at(endpoint: str) -> list[str]:
    return [name for name, column in COLUMNS.items() if endpoint not in VECTORS or column.vectors]


def _parts() -> tuple[str, str, str]:
    """The document: before the table, the table, after it."""
    found = re.fullmatch(
        r"(.*<!-- table -->\n)(.*)(<!-- end of table -->.*)", DOCUMENT.read_text(), re.DOTALL
    )
    assert found
    return found[1], found[2], found[3]


def written() -> tuple[str, dict[str, Cells]]:
    """The table as it stands, and its columns."""
    text = _parts()[1]
    columns: dict[str, Cells] = {name: {} for name in COLUMNS}
    endpoint, heads = "", list[str]()
    for line in text.splitlines():
        if line.startswith("### POST "):
            endpoint, heads = line.removeprefix("### POST "), []
        elif line.startswith("| "):
            field, example, *cells = re.split(r" (?<!\\)\| ", line[2:-2])
            if not heads:
                heads = cells
                continue
            for engine, cell in zip(heads, cells, strict=True):
                if engine in columns:
                    columns[engine][endpoint, field, example] = cell
    return text, columns


def rendered(columns: Mapping[str, Cells]) -> str:
    lines: list[str] = []
    for endpoint, group in groupby((place for place, _, _ in rows()), key=lambda place: place[0]):
        engines = engines_at(endpoint)
        heads = ("field", "for example", *engines)
        lines += [f"### POST {endpoint}", "", _line(heads), "|---" * len(heads) + "|"]
        for place in group:
            cells = (columns[engine].get(place, UNKNOWN) for engine in engines)
            lines.append(_line((*place[1:], *cells)))
        lines.append("")
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(columns: Mapping[str, Cells]) -> None:
    before, _, after = _parts()
    DOCUMENT.write_text(before + rendered(columns) + after)
