"""The server as a process: it stops when told, in order, and speaks TLS."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import subprocess
import sys

import httpx
import openai
import pytest

from queueserve.settings import ApiSettings

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BOUND = 60.0  # seconds that any single wait may take, on however busy a machine

RUN = "from queueserve.api.server import run; from queueserve.settings import ApiSettings; "


@pytest.fixture
async def process(redis_url, until, free_port):
    """Start `run(ApiSettings(…))` in a process of its own; gives it, with its address."""
    started = []

    async def start(scheme="http", **settings):
        port = free_port()
        given = {"port": port, "redis_url": redis_url} | settings
        command = (sys.executable, "-c", f"{RUN}run(ApiSettings(**{given!r}))")
        child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        started.append(child)
        child.url = f"{scheme}://127.0.0.1:{port}"
        await until(lambda: accepts(port))
        return child

    yield start
    for child in started:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.communicate()


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def refuses(port: int) -> bool:
    return not await accepts(port)


async def is_running(redis, count: int) -> bool:
    jobs = await redis.keys("qs:{m}:job:*")
    return [await redis.hget(job, "state") for job in jobs].count(b"running") == count


async def ended(child) -> int:
    async with asyncio.timeout(BOUND):
        return await child.wait()


@pytest.fixture
async def client_of():
    async with contextlib.AsyncExitStack() as stack:

        async def make(child) -> openai.AsyncOpenAI:
            client = openai.AsyncOpenAI(
                base_url=f"{child.url}/v1", api_key="none", max_retries=0, timeout=BOUND
            )
            return await stack.enter_async_context(client)

        yield make


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_server_ends_with_status_0(process, number):
    child = await process()
    child.send_signal(number)
    assert await ended(child) == 0


async def test_what_runs_may_end_and_nothing_new_begins(process, worker, client_of, until):
    await worker(tick=0.02)
    child = await process()
    client = await client_of(child)
    stream = await client.chat.completions.create(
        **CHAT, stream=True, max_tokens=50, extra_body={"ignore_eos": True}
    )
    chunks = [await anext(stream)]
    child.send_signal(signal.SIGTERM)
    port = int(child.url.rpartition(":")[2])
    await until(lambda: refuses(port))
    chunks += [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert await ended(child) == 0


async def test_after_the_grace_time_a_stream_ends_with_an_error_and_its_job_too(
    process, worker, client_of, redis, until
):
    await worker(tick=0.02)
    child = await process(shutdown_grace=0.5)
    client = await client_of(child)
    options = {"max_tokens": 3000, "extra_body": {"ignore_eos": True}}
    stream = await client.chat.completions.create(**CHAT, **options, stream=True)
    await anext(stream)
    whole = asyncio.create_task(client.chat.completions.create(**CHAT, **options))
    await until(lambda: is_running(redis, 2))
    child.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "server_closing"
    with pytest.raises(openai.InternalServerError) as refused:
        await whole
    assert (refused.value.status_code, refused.value.code) == (503, "server_closing")
    assert await ended(child) == 0
    states = [await redis.hget(job, "state") for job in await redis.keys("qs:{m}:job:*")]
    assert states == [b"cancelled"] * 2
    assert b"Traceback" not in await child.stderr.read()


def test_a_port_that_is_taken_ends_it_with_a_status():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"port": taken.getsockname()[1], "redis_url": "redis://127.0.0.1:1/0"}
        child = subprocess.run(
            [sys.executable, "-c", f"{RUN}run(ApiSettings(**{given!r}))"],
            capture_output=True,
            check=False,
            timeout=BOUND,
        )
    assert child.returncode == 3
    assert b"address already in use" in child.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1 that is its own authority."""
    where = tmp_path_factory.mktemp("tls")
    key, cert = where / "key.pem", where / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return str(key), str(cert)


async def test_it_speaks_tls(process, certificate):
    key, cert = certificate
    child = await process("https", ssl_keyfile=key, ssl_certfile=cert)
    trust = ssl.create_default_context(cafile=cert)
    async with httpx.AsyncClient(verify=trust, timeout=BOUND) as client:
        assert (await client.get(f"{child.url}/health")).json() == {"status": "ok"}


async def test_with_authorities_it_wants_a_client_certificate(process, certificate):
    key, cert = certificate
    child = await process("https", ssl_keyfile=key, ssl_certfile=cert, ssl_ca_certs=cert)
    trust = ssl.create_default_context(cafile=cert)
    async with httpx.AsyncClient(verify=trust, timeout=BOUND) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(f"{child.url}/health")
    trust.load_cert_chain(cert, key)
    async with httpx.AsyncClient(verify=trust, timeout=BOUND) as client:
        assert (await client.get(f"{child.url}/health")).status_code == 200


def test_a_key_without_a_certificate_is_refused():
    with pytest.raises(ValueError, match="ssl_certfile"):
        ApiSettings(ssl_keyfile="key.pem")
