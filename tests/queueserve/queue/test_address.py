"""Redis URLs, each on a real server: TLS with certificates, a unix socket, a password, Sentinel."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from queueserve.errors import RedisConfigurationError, RedisUnavailableError
from queueserve.queue.address import parse, shown
from queueserve.queue.connection import open_blocking_redis, open_redis, translated
from queueserve.queue.exchange import Line
from queueserve.queue.preflight import check
from queueserve.queue.subscription import Subscription

BOUND = 20.0


async def works(url: str) -> None:
    """The three kinds of connection, as soon as the server answers."""
    client, blocking = open_redis(url), open_blocking_redis(url)
    try:
        async with asyncio.timeout(BOUND):
            await answer(client)
            async with Subscription(client, "channel") as subscription:
                await client.publish("channel", "word")
                assert await subscription.next() == b"word"
            await client.rpush("list", "item")
            popped = await Line(blocking, longer=5).call("BLMPOP", 5, 1, "list", "LEFT")
            assert popped == [b"list", [b"item"]]
    finally:
        await client.aclose()
        await blocking.aclose()


async def answer(client) -> None:
    while True:
        with contextlib.suppress(RedisUnavailableError), translated():
            assert await client.ping()
            return
        await asyncio.sleep(0.02)


async def refused(url: str, why: str) -> None:
    client = open_redis(url)
    try:
        with pytest.raises(RedisConfigurationError, match=why):
            await check(client)
    finally:
        await client.aclose()


async def test_a_plain_url(redis_url):
    await works(redis_url)


async def test_a_unix_socket(start_redis, tmp_path):
    path = tmp_path / "s"
    start_redis("--port", "0", "--unixsocket", str(path))
    await works(f"unix://{path}?db=1")


async def test_a_password(start_redis):
    port = start_redis("--requirepass", "open sesame").port
    await works(f"redis://:open%20sesame@127.0.0.1:{port}/0")
    await refused(f"redis://:wrong@127.0.0.1:{port}/0", "Redis refuses us")
    await refused(f"redis://127.0.0.1:{port}/0", "Redis refuses us")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://host",
        "redis://host:port/0",
        "redis://host?max_connections=many",
        "redis+sentinel://host:1",
        "redis+sentinel://:1/name",
        "redis+sentinel://host:x/name",
    ],
)
def test_a_url_that_makes_no_sense_is_a_clear_error(url):
    with pytest.raises(RedisConfigurationError, match="The Redis URL cannot be understood"):
        parse(url)


def test_an_error_does_not_show_the_password():
    with pytest.raises(RedisConfigurationError) as error:
        parse("redis+sentinel://user:secret@host:1")
    assert "secret" not in str(error.value)


def test_a_sentinel_url_in_full():
    address = parse(
        "rediss+sentinel://user:p%40ss@h1:1,h2,[::1]:3/name/2?ssl_ca_certs=/ca&sentinel_password=s"
    )
    assert address.sentinels == (("h1", 1), ("h2", 26379), ("::1", 3))
    assert address.master == "name"
    tls = {"ssl": True, "ssl_ca_certs": "/ca", "ssl_check_hostname": True}
    tcp = {"socket_keepalive": True, "socket_connect_timeout": 2.0}
    assert address.options == {**tls, **tcp, "username": "user", "password": "p@ss", "db": 2}
    assert address.sentinel_options == {**tls, **tcp, "password": "s"}


@pytest.mark.parametrize(
    "url, text",
    [
        ("redis://u:p@h:1/0", "redis://h:1/0"),
        ("unix:///run/redis?db=1", "unix:///run/redis"),
        ("redis+sentinel://:p@a:1,b:2/main/0", "redis+sentinel://a:1,b:2/main/0"),
        ("redis+sentinel://:p@a,[::1]:2/main?db=1", "redis+sentinel://a,[::1]:2/main"),
    ],
)
def test_a_url_is_shown_without_its_password(url, text):
    assert shown(url) == text


# TLS


@pytest.fixture
async def tls(redis_url, certificates):
    """A TLS end in front of the server, which wants a client's certificate."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    tasks: set[asyncio.Task] = set()

    async def pipe(reader, writer) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):  # also when it is cancelled
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def accept(reader, writer) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        for work in (pipe(reader, inner_writer), pipe(inner_reader, writer)):
            tasks.add(asyncio.create_task(work))

    async with contextlib.AsyncExitStack() as stack:

        async def start(name: str) -> int:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
            context.load_verify_locations(certificates / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
            server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
            stack.callback(server.close)
            return server.sockets[0].getsockname()[1]

        yield start
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def mine(certificates) -> str:
    return f"ssl_certfile={certificates}/client.pem&ssl_keyfile={certificates}/client.key"


async def test_tls_with_certificates_on_both_sides(tls, certificates):
    port = await tls("server")
    ca = f"ssl_ca_certs={certificates}/ca.pem"
    await works(f"rediss://127.0.0.1:{port}/0?{ca}&{mine(certificates)}")


async def test_a_server_whose_certificate_nobody_knows_is_refused(tls, certificates):
    await refused(f"rediss://127.0.0.1:{await tls('server')}/0", "certificate is not accepted")


async def test_a_certificate_for_another_host_is_refused(tls, certificates):
    ca = f"ssl_ca_certs={certificates}/ca.pem&{mine(certificates)}"
    url = f"rediss://127.0.0.1:{await tls('other')}/0?{ca}"
    await refused(url, "certificate is not accepted")


async def test_a_server_with_tls_of_its_own(start_redis, certificates, free_port, tls_binary):
    port = free_port()
    start_redis(
        *("--port", "0", "--tls-port", str(port)),
        *("--tls-cert-file", f"{certificates}/server.pem"),
        *("--tls-key-file", f"{certificates}/server.key"),
        *("--tls-ca-cert-file", f"{certificates}/ca.pem"),
        binary=tls_binary,
    )
    ca = f"ssl_ca_certs={certificates}/ca.pem"
    await works(f"rediss://127.0.0.1:{port}/0?{ca}&{mine(certificates)}")
