"""Chat templates for models that ship none: the files here, and which model gets which.

A template is never guessed from a name that merely looks alike. It is the one that
`--chat-template` names; else the model's own; else the one that its card leads to, by exact match.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from queueserve.errors import EngineError

_VICUNA = (
    "lmsys/longchat-13b-16k",
    "lmsys/longchat-7b-16k",
    "lmsys/longchat-7b-v1.5-32k",
    "lmsys/vicuna-13b-v1.1",
    "lmsys/vicuna-13b-v1.3",
    "lmsys/vicuna-13b-v1.5",
    "lmsys/vicuna-13b-v1.5-16k",
    "lmsys/vicuna-33b-v1.3",
    "lmsys/vicuna-7b-v1.1",
    "lmsys/vicuna-7b-v1.3",
    "lmsys/vicuna-7b-v1.5",
    "lmsys/vicuna-7b-v1.5-16k",
)
MODELS = dict.fromkeys(_VICUNA, "vicuna")
"""Hub id → template, for models that are known to ship none."""

_log = logging.getLogger(__name__)


def known_templates() -> tuple[str, ...]:
    """Return the names that `load_template` knows, sorted."""
    files = (file.name for file in resources.files(__name__).iterdir())
    return tuple(sorted(name[: -len(".jinja")] for name in files if name.endswith(".jinja")))


def load_template(name_or_file: str) -> str:
    """Return the Jinja source of a known template, or of a file. Raises EngineError."""
    if name_or_file in known_templates():
        file = resources.files(__name__) / f"{name_or_file}.jinja"
        return file.read_text(encoding="utf-8")
    try:
        return Path(name_or_file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(known_templates())
        raise EngineError(
            f"no chat template {name_or_file!r}: it is neither one of {known} nor a readable file "
            f"({error})"
        ) from error


def choose_template(*, option: str | None, own: str | None, model_path: str) -> str | None:
    """Return the Jinja source of a model's chat template, None if it has none.

    `option` is the value of `--chat-template`, `own` the template that the model ships,
    `model_path` a hub id or a directory. Raises EngineError for an option that is no template.
    """
    if option is not None:
        return load_template(option)
    if own is not None:
        return own
    for source, value in _card(model_path):
        name = _match(source, value)
        if name is not None:
            _log.info(
                "%s ships no chat template: using %r, as its %s is %r (--chat-template overrides)",
                model_path,
                name,
                source,
                value,
            )
            return load_template(name)
    return None


def _match(source: str, value: str) -> str | None:
    if source == "chat_template":
        return value if value in known_templates() else None
    if source == "_name_or_path":  # often written without the owner
        return MODELS.get(value) or MODELS.get(f"lmsys/{value}")
    return MODELS.get(value)


def _card(model_path: str) -> Iterator[tuple[str, str]]:
    """Yield what a model says about itself, as (where, value); the most explicit first."""
    directory = Path(model_path).expanduser()
    if not directory.is_dir():
        yield "name", model_path
        return
    for key in ("chat_template", "base_model"):
        for value in _front_matter(directory / "README.md", key):
            yield key, value
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    name = config.get("_name_or_path") if isinstance(config, dict) else None
    if isinstance(name, str):
        yield "_name_or_path", name


def _front_matter(file: Path, key: str) -> list[str]:
    """Return the values of a key in the YAML block that opens a model card: a scalar or a list.

    Cards are read by line: a YAML parser would be a dependency for two keys.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    block = re.match(r"---\s*\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
    found = block and re.search(
        rf"^{key}:[ \t]*(\S.*)?\n((?:[ \t]*-[ \t]+.*\n)*)", block[1], re.MULTILINE
    )
    if not found:
        return []
    values = [found[1] or "", *re.findall(r"-[ \t]+(.*)", found[2])]
    return [value for raw in values if (value := raw.strip().strip("'\""))]
