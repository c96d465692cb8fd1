"""From a GGUF file to a directory that transformers loads: weights, tokenizer and chat template.

Reading a GGUF file takes transformers some ten seconds, so what comes out is kept.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from queueserve.errors import EngineError
from queueserve.pidlock import PidLock
from workers.engines.fingerprint import fingerprint

_PATIENCE = 1800.0  # seconds for another process to convert: more than the largest model takes


def default_cache_dir() -> Path:
    """Where converted models go if nobody says: the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "queueserve" / "models"


def converted(gguf: Path, cache_dir: Path) -> Path:
    """The directory in `cache_dir` with the model of this GGUF file; made if it is not there.

    It is named by the file's name and contents, so another version of the file gets its own. Blocks
    for some seconds the first time; of several processes that want the same model, one converts,
    and the others wait half an hour at most. Raises EngineError.
    """
    if not gguf.is_file():
        raise EngineError(f"there is no file {gguf}")
    made = cache_dir / f"{gguf.stem}-{fingerprint([gguf])[:8]}"
    if not made.is_dir():
        try:
            _make_once(gguf, made)
        except OSError as error:
            raise EngineError(
                f"no converted model can be kept in {cache_dir} ({error.strerror}): "
                "choose another data directory"
            ) from error
    return made


def _make_once(gguf: Path, made: Path) -> None:
    cache_dir = made.parent
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _only_process(cache_dir / f".{made.name}.lock"):
        for killed in cache_dir.glob(f".{made.name}-*"):  # what a dead process left
            shutil.rmtree(killed, ignore_errors=True)
        if not made.is_dir():
            convert_gguf(gguf, made)


def loadable(model_path: str, cache_dir: Path | None) -> str:
    """What a library of Python can load: a GGUF file is `converted`, all else is left as it is.

    Without a `cache_dir` it is the default one. Blocks and raises as `converted` does.
    """
    path = Path(model_path)
    if path.suffix == ".gguf":
        return str(converted(path, cache_dir or default_cache_dir()))
    return model_path


def directory_or_hub_id(model_path: str, cache_dir: Path | None) -> str:
    """What is `loadable`; raises EngineError, too, for a path where no directory is."""
    found = loadable(model_path, cache_dir)
    path = Path(found)
    if not path.is_dir() and (path.is_absolute() or found.startswith(".")):
        raise EngineError(f"there is no directory {path}")  # else it is an id on the hub
    return found


def convert_gguf(gguf_path: Path, out_dir: Path) -> None:
    """Write the model in bfloat16 to `out_dir`, which appears whole or not at all.

    Raises EngineError for a file that transformers cannot read, or without transformers and gguf.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        _convert(gguf_path, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(out_dir)
    except ImportError as error:
        raise EngineError(
            f"converting a GGUF file needs a library that is not installed ({error}): "
            "pip install 'queueserve[transformers]'"
        ) from error
    except Exception as error:
        raise EngineError(f"transformers cannot read {gguf_path}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _convert(gguf_path: Path, out_dir: Path) -> None:
    import torch  # noqa: PLC0415  # heavy: only when it is needed
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    source = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
    with _read_once():
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    mend_decoder(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(out_dir)
    model.save_pretrained(out_dir)


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers read a file once, not for tokenizer, configuration and weights each.

    Most of a conversion is reading the vocabulary, whose every token is a field of the file.
    """
    import gguf  # noqa: PLC0415

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def mend_decoder(tokenizer: Any) -> None:
    """Give a byte-level tokenizer of the library tokenizers the decoder that belongs to it.

    Some versions of transformers (5.17 is one, 5.23 is not) put SentencePiece's in front of it.
    Text comes out right all the same, but who asks for the bytes of one token, as engines do for a
    grammar, is told wrong ones.
    """
    from tokenizers import decoders, pre_tokenizers  # noqa: PLC0415

    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.decoder = decoders.ByteLevel()


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Wait until no other process converts. One that dies lets go; one that is stopped does not."""
    with PidLock(lock) as held:
        if not held.take(within=_PATIENCE):
            raise EngineError(
                f"another process has not converted the model in {_PATIENCE:.0f} s: "
                f"end it (it holds {lock})"
            )
        yield
