"""What `queueserve up` starts, and with which arguments, from what it was given itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from queueserve.up import UpSettings

_FOR_BOTH = ("prefix", "heartbeat_timeout", "grace", "log_level", "log_format")
_FOR_THE_API = (
    "queue_timeout",
    "request_timeout",
    "max_queue",
    "max_queue_per_tenant",
    "max_body_bytes",
    "allowed_image_hosts",
    "keep_alive",
    "write_timeout",
    "response_ttl",
    "max_response_bytes",
    "allowed_origins",
    "allowed_methods",
    "allowed_headers",
    "allow_credentials",
    "ssl_keyfile",
    "ssl_certfile",
)
_FOR_WORKERS = ("engine", "model_path", "model_names", "data_dir")
_SECRET = ("ssl_keyfile_password", "idempotency_secret", "api_keys")
_NAMES = (  # one value each
    "api_keys",
    "allowed_origins",
    "allowed_methods",
    "allowed_headers",
    "allowed_image_hosts",
)


def up_settings(given: dict[str, Any]) -> UpSettings:
    """What `queueserve up` was given, by the names of its options."""
    data_dir = given["data_dir"] or _default_data_dir()
    models = given["model_path"] or (() if given["engine"] == "fake" else ("smollm2",))
    values = {**given, "data_dir": data_dir, "model_path": models}
    return UpSettings(
        host=given["host"],
        port=given["port"],
        data_dir=data_dir,
        redis_url=given["redis_url"],
        redis_port=given["redis_port"],
        prefix=given["prefix"],
        heartbeat_timeout=given["heartbeat_timeout"],
        grace=given["grace"],
        workers=given["workers"],
        model=", ".join(models) or "the fake engine",
        tls=given["ssl_certfile"] is not None,
        keyed=given["api_keys"] is not None,
        api_arguments=_arguments(values, *_FOR_BOTH, *_FOR_THE_API),
        worker_arguments=(
            *_arguments(values, *_FOR_BOTH, *_FOR_WORKERS),
            *given["worker_options"],
        ),
        secrets=_secrets(given),
    )


def _secrets(given: dict[str, Any]) -> dict[str, str]:
    """The variables for what must not stand on a command line."""
    return {
        f"QUEUESERVE_{name.upper()}": ",".join(given[name]) if name in _NAMES else given[name]
        for name in _SECRET
        if given[name] is not None
    }


def _arguments(values: dict[str, Any], *names: str) -> tuple[str, ...]:
    """The command line that gives another command the same values."""
    line: list[str] = []
    for name in names:
        value, flag = values[name], "--" + name.replace("_", "-")
        if isinstance(value, bool):
            line += [flag] if value else []
            continue
        if name in _NAMES and value is not None:
            value = ",".join(value)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None:
                line += [flag, str(each)]
    return tuple(line)


def _default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "queueserve"
