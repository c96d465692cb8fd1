"""What the files of a model say about how it is used: to generate, to embed, or to score pairs.

`config.json` names the architecture; `modules.json`, and what it names, say how the vectors of
tokens become one. Both as sentence-transformers writes them (https://sbert.net).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from queueserve.errors import EngineError

Use: TypeAlias = Literal["generate", "embed", "score"]
Pooling: TypeAlias = Literal["cls", "mean", "max", "lasttoken"]

_POOLINGS: dict[str, Pooling] = {
    "cls": "cls",
    "pooling_mode_cls_token": "cls",
    "mean": "mean",
    "pooling_mode_mean_tokens": "mean",
    "max": "max",
    "pooling_mode_max_tokens": "max",
    "lasttoken": "lasttoken",
    "pooling_mode_lasttoken": "lasttoken",
}
"""By `pooling_mode`, or by the flag that is true, as older files have it."""
_STEPS = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an embedding model is meant to be used."""

    pooling: Pooling = "mean"
    max_length: int | None = None  # tokens of an input; None: what the model can


def use_of(config: dict[str, Any], *, has_modules: bool) -> Use:
    """Return what a model is for, from its config.json and whether it has a modules.json."""
    names = [str(name) for name in config.get("architectures") or ()]
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "score"
    # BertModel, XLMRobertaModel …, but not GPT2LMHeadModel: no head, so nothing to generate with.
    bare = bool(names) and all(n.endswith("Model") and "Head" not in n for n in names)
    return "embed" if has_modules or bare else "generate"


def use_of_model(path: str, revision: str | None = None) -> Use:
    """Return what a model is for: one in a directory, or on the hub by its id.

    One that cannot be looked at is taken to generate; loading it will say what is wrong. Raises
    EngineError for a file that cannot be read.
    """
    directory = Path(path) if Path(path).exists() else _from_hub(path, revision)
    if directory is None or not directory.is_dir():
        return "generate"
    has_modules = (directory / "modules.json").is_file()
    return use_of(_object(directory / "config.json"), has_modules=has_modules)


def _from_hub(model: str, revision: str | None) -> Path | None:
    """Fetch the two files that tell; None if that is not possible."""
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with transformers

        names = ["config.json", "modules.json"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=names))
    except Exception:  # noqa: BLE001 - it raises what it likes
        return None


def recipe_of(directory: Path) -> Recipe:
    """Return how the model in a directory embeds; the mean of all tokens if nothing is said.

    Raises EngineError for a way that we do not know: other vectors would come out.
    """
    modules = _list(directory / "modules.json")
    for module in modules:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in _STEPS:
            raise EngineError(f"{directory} needs a {kind} after the model, which is not supported")
    poolings = [m for m in modules if str(m.get("type")).endswith(".Pooling")]
    pooling: Pooling = "mean"
    for module in poolings:
        pooling = _pooling(directory / str(module.get("path")) / "config.json")
    length = _object(directory / "sentence_bert_config.json").get("max_seq_length")
    return Recipe(pooling, length if isinstance(length, int) else None)


def recipe_files(directory: Path) -> list[Path]:
    """Return the files that decide the vectors beside the model's own."""
    found = [directory / "modules.json", directory / "sentence_bert_config.json"]
    return [*filter(Path.is_file, found), *sorted(directory.glob("*_Pooling/config.json"))]


def _pooling(file: Path) -> Pooling:
    config = _object(file)
    named = [config["pooling_mode"]] if "pooling_mode" in config else []
    on = named or [flag for flag, value in config.items() if value is True and "_mode_" in flag]
    if len(on) != 1 or on[0] not in _POOLINGS:
        raise EngineError(f"{file} asks for a pooling that is not supported: {on or 'none'}")
    return _POOLINGS[on[0]]


def _object(file: Path) -> dict[str, Any]:
    content = _json(file)
    return content if isinstance(content, dict) else {}


def _list(file: Path) -> list[dict[str, Any]]:
    content = _json(file)
    return [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []


def _json(file: Path) -> Any:
    """Return what a file holds; None for one that is not there. Raises EngineError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EngineError(f"{file} cannot be read: {error}") from error
