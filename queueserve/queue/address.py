"""Where Redis is: redis://, rediss:// (TLS), unix://, and redis+sentinel:// through its sentinels.

What stands behind `?` are options of the connection, by their names in redis-py: `ssl_ca_certs`,
`ssl_certfile`, `ssl_keyfile`, `db` … For sentinels, names that begin with `sentinel_` are theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio.connection import parse_url

from queueserve.errors import RedisConfigurationError

_SENTINEL = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_SENTINEL_PORT = 26379
_OF_TCP = {"socket_connect_timeout": 2.0, "socket_keepalive": True}


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis, or the sentinels that know which one it is."""

    options: dict[str, Any]  # of a connection, with its class
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: dict[str, Any] | None = None
    master: str = ""


def parse(url: str) -> Address:
    """Understand a URL. Raises RedisConfigurationError."""
    scheme = url.partition("://")[0]
    try:
        if scheme in _SENTINEL:
            return _sentinel(url, _SENTINEL[scheme])
        options = dict(parse_url(url))
        return Address({**_defaults(scheme), **options})
    except (ValueError, TypeError) as error:  # no word of the URL itself: it may hold a password
        raise RedisConfigurationError(f"The Redis URL cannot be understood: {error}") from error


def shown(url: str) -> str:
    """The URL for people, without a password."""
    _, hosts, parts = _split(url)
    return f"{parts.scheme}://{hosts}{parts.path}"


def _split(url: str) -> tuple[str, str, SplitResult]:
    """The login with its @, the hosts, and the rest, as urlsplit gives it.

    To urlsplit itself several hosts are an error as soon as one of them is an IPv6 address.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    login, at, hosts = authority.rpartition("@")
    return login + at, hosts, urlsplit(f"{scheme}://{rest.removeprefix(authority)}")


def _sentinel(url: str, scheme: str) -> Address:
    login, hosts, parts = _split(url)
    master, _, db = parts.path.strip("/").partition("/")
    if not master:
        raise ValueError("redis+sentinel://host:port,host:port/NAME/db needs the master's NAME")
    given = dict(parse_url(f"{scheme}://{login}master/{db}?{parts.query}"))
    del given["host"]
    theirs = {
        name.removeprefix("sentinel_"): given.pop(name)
        for name in list(given)
        if name.startswith("sentinel_")
    }
    secure = given.pop("connection_class", None) is not None
    tls = {name: value for name, value in given.items() if name.startswith("ssl_")}
    both = {**_defaults(scheme), "ssl": True} if secure else _defaults(scheme)
    return Address(
        options={**both, **given},
        sentinels=tuple(_host(host) for host in hosts.split(",")),
        sentinel_options={**both, **tls, **theirs},
        master=unquote(master),
    )


def _host(text: str) -> tuple[str, int]:
    name, _, port = text.rpartition(":") if ":" in text.rpartition("]")[2] else (text, "", "")
    if not name.strip("[]"):
        raise ValueError("a sentinel has no host name")
    return name.strip("[]"), int(port or _SENTINEL_PORT)


def _defaults(scheme: str) -> dict[str, Any]:
    if scheme == "unix":
        return {}
    # redis-py 5 would take any certificate that the authority has signed, for any host.
    return {**_OF_TCP, "ssl_check_hostname": True} if scheme == "rediss" else dict(_OF_TCP)
