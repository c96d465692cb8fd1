import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from queueserve import __version__
from queueserve.cli import main
from queueserve.protocol import Job, ModelCard
from queueserve.queue.consumer import Consumer
from queueserve.queue.directory import announce
from queueserve.queue.inspect import ModelView, Snapshot, WorkerView
from queueserve.queue.producer import Limits, Producer
from queueserve.status import render_table
from queueserve.up_settings import up_settings
from queueserve.welcome import Address, welcome
from workers.cli import main as worker_command

COMMANDS = [*main.commands.values(), worker_command]


def options_of(command: click.Command) -> list[click.Option]:
    return [
        each for each in command.params if isinstance(each, click.Option) and each.name != "version"
    ]


@pytest.fixture
def run(monkeypatch):
    """Run the command with these arguments, and no settings from the environment."""
    for name in list(os.environ):
        if name == "REDIS_URL" or name.startswith("QUEUESERVE_"):
            monkeypatch.delenv(name)
    return lambda *arguments, **more: CliRunner().invoke(main, arguments, **more)


def test_the_version(run):
    assert run("--version").output == f"queueserve, version {__version__}\n"


def test_help_loads_no_heavy_library():
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from queueserve.cli import main\n"
        "assert CliRunner().invoke(main, ['up', '--help']).exit_code == 0\n"
        "print({'redis', 'fastapi', 'uvicorn', 'httpx', 'pydantic'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_has_its_variable_and_help_shows_it(command):
    shown = CliRunner().invoke(command, ["--help"], terminal_width=1000).output
    options = options_of(command)
    assert options
    for option in options:
        variable = "QUEUESERVE_" + option.opts[0].removeprefix("--").replace("-", "_").upper()
        names = option.envvar if isinstance(option.envvar, list) else [option.envvar]
        assert names[0] == variable
        assert f"[env var: {', '.join(names)}" in shown
        assert option.help or option.name == "log_format"


@pytest.mark.parametrize(
    "option",
    ["--queue-timeout", "--request-timeout", "--heartbeat-timeout", "--grace", "--keep-alive"],
)
@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_duration_is_a_positive_number_of_seconds(run, command, option, value):
    done = run(command, option, value)
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_number_is_none_or_without_end(command):
    for option in command.params:
        if isinstance(option.type, click.types.FloatParamType):
            for value in ("nan", "inf"):
                with pytest.raises(click.BadParameter):
                    option.type.convert(value, option, None)


def test_a_value_from_the_environment_is_checked_like_any_other(run):
    done = run("serve", env={"QUEUESERVE_QUEUE_TIMEOUT": "soon"})
    assert done.exit_code == 2
    assert "'soon' is not a positive number of seconds" in done.output


def test_a_tls_key_without_its_certificate_is_refused(run, tmp_path):
    key = tmp_path / "key.pem"
    key.touch()
    done = run("serve", "--ssl-keyfile", str(key))
    assert done.exit_code == 2
    assert "ssl_certfile" in done.output


@pytest.mark.parametrize("value", ["", "a,,b", "[1]", "[", '["a", ""]'])
def test_a_list_of_names_is_checked(run, value):
    done = run("serve", "--api-keys", value)
    assert done.exit_code == 2
    assert "Invalid value for '--api-keys'" in done.output


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize("keys", ["", " ", ",", "[]"])
def test_keys_that_are_set_and_empty_start_no_open_server(run, command, keys):
    for done in (
        run(command, env={"QUEUESERVE_API_KEYS": keys}),
        run(command, "--api-keys", keys),
    ):
        assert done.exit_code == 2
        assert "Invalid value for '--api-keys' (env var: 'QUEUESERVE_API_KEYS')" in done.output


def test_a_key_that_no_header_can_carry_is_refused(run):
    done = run("serve", "--api-keys", "ключ")
    assert done.exit_code == 2
    assert "ASCII" in done.output


def test_cookies_from_everywhere_are_refused(run):
    done = run("serve", "--allowed-origins", "*", "--allow-credentials")
    assert done.exit_code == 2
    assert "allowed_origins by name" in done.output


def test_up_gives_its_api_server_the_keys_where_nobody_reads_them():
    names = '["https://a.example", "https://b.example"]'
    context = main.commands["up"].make_context(
        "up",
        ["--api-keys", "k1,k2", "--allowed-origins", names, "--allow-credentials"],
    )
    settings = up_settings(context.params)
    assert settings.secrets["QUEUESERVE_API_KEYS"] == "k1,k2"
    line = " ".join((*settings.api_arguments, *settings.worker_arguments))
    assert "--allowed-origins https://a.example,https://b.example" in line
    assert "--allow-credentials" in line
    assert "k1" not in line
    assert settings.keyed


# status


async def registered(functions, redis, keys):
    """A worker with two slots, in Redis."""
    consumer = Consumer(functions, keys, "m", "box-7-a1b2c3", heartbeat_timeout=15.0)
    card = ModelCard(name="m", pool="m", context_length=2048, engine="fake")
    alias = ModelCard(name="alias", pool="m", context_length=2048, engine="fake")
    await announce(redis, keys, [card, alias])
    about = {"engine": "fake 1.0", "host": "box", "pid": 7, "context_length": 2048}
    await consumer.register(slots=2, speed=1.0, about=about)


async def test_status_as_json_has_what_redis_has(run, functions, redis, keys, redis_url):
    await registered(functions, redis, keys)
    producer = Producer(functions, keys, heartbeat_timeout=15, limits=Limits())
    job = Job(id="j", pool="m", model="m", kind="completion")
    await producer.submit(job, "api", new_api=True)
    # In a thread: the command starts an event loop of its own.
    done = await asyncio.to_thread(run, "status", "--json", env={"REDIS_URL": redis_url})
    [model] = json.loads(done.output)["models"]
    [worker] = model.pop("workers")
    assert model == {
        "name": "m",
        "aliases": ["alias"],
        "context_length": 2048,
        "skipped": 0,
        "depth": 0,
        "oldest_wait": 0.0,
        "running": 1,
    }
    assert 10 < worker.pop("ttl") <= 15
    assert worker == {
        "id": "box-7-a1b2c3",
        "host": "box",
        "pid": 7,
        "engine": "fake 1.0",
        "state": "ready",
        "slots": 2,
        "running": 1,
        "speed": 1.0,
        "load": 1.0,
        "jobs": ["j"],
    }


def test_status_as_a_table():
    worker = WorkerView(
        id="box-7-a1b2c3",
        host="box",
        pid=7,
        engine="fake 1.0",
        state="ready",
        slots=2,
        running=1,
        speed=1.0,
        load=1.0,
        ttl=14.2,
        jobs=("j",),
    )
    full = WorkerView("b-8-d4e5f6", "b", 8, "fake 1.0", "ready", 1, 1, 0.5, None, 3.0, ("k",))
    seen = Snapshot(
        models=(
            ModelView("m", ("alias",), 2048, 3, 1.25, 2, (worker, full)),
            ModelView("gone", (), 2048, 0, 0.0, 0, (), skipped=3),
        ),
        api_servers=("api-1",),
    )
    assert render_table(seen) == (
        "m, alias: 3 waiting, the first for 1.2 s, 2 running\n"
        "  WORKER        ENGINE    HOST  PID  STATE  RUNNING  LOAD  SPEED  TTL\n"
        "  box-7-a1b2c3  fake 1.0  box   7    ready  1/2      1.00  1.00   14 s\n"
        "  b-8-d4e5f6    fake 1.0  b     8    ready  1/1      -     0.50   3 s\n"
        "\n"
        "gone: 0 waiting, 0 running, 3 skipped, no worker\n"
        "\n"
        "1 API server with requests"
    )


def test_status_without_a_model(run, redis_url):
    assert run("status", "--redis-url", redis_url).output == (
        "No model: no worker has registered one.\n"
    )


def test_status_without_redis_is_one_clear_line(run, closed_port):
    done = run("status", "--redis-url", f"redis://127.0.0.1:{closed_port}/0")
    assert done.exit_code == 1
    assert done.output.startswith("Error: Redis does not answer")
    assert done.output.count("\n") == 1


# dead


BODY = '{"id":"j","prompt":"boom"}'


@pytest.fixture
async def dead_letter(redis, keys):
    """A job of the model `m` that was given up."""
    card = ModelCard(name="m", pool="m", context_length=2048, engine="fake")
    await announce(redis, keys, [card, replace(card, name="alias")])
    pool = keys.pool("m")
    row = {
        "died": 1_800_000_060_000_000,
        "submitted": 1_800_000_000_000_000,
        "attempts": 3,
        "tenant": "t",
        "workers": "w1 w2 w3",
        "reason": "It ended 3 workers.",
        "body": BODY,
        "body_bytes": len(BODY),
    }
    await redis.zadd(pool.dead, {"j": row["died"]})
    await redis.hset(pool.dead_letter("j"), mapping=row)


async def test_dead_letters_as_a_table_one_in_full_and_as_json(run, dead_letter, redis_url):
    def dead(*arguments):
        return asyncio.to_thread(run, "dead", *arguments, "--redis-url", redis_url)

    assert (await dead("alias")).output == (
        "JOB  MODEL  DIED                 ATTEMPTS  TENANT  LAST WORKER\n"
        "j    m      2027-01-15 08:01:00  3         t       w3\n"
    )
    shown = (await dead("--show", "j")).output
    assert "Given up  2027-01-15 08:01:00, after 3 attempts\nWorkers   w1, w2, w3\n" in shown
    assert shown.endswith('{\n  "id": "j",\n  "prompt": "boom"\n}\n')
    [letter] = json.loads((await dead("m", "--json")).output)
    assert (letter["body"], letter["died"]) == ({"id": "j", "prompt": "boom"}, 1_800_000_060)
    assert (await dead("other")).output == "No dead letter.\n"
    assert (await dead("--show", "x")).output == "Error: There is no dead letter of a job 'x'.\n"


async def test_dead_letters_are_deleted(run, dead_letter, redis_url):
    cleared = await asyncio.to_thread(run, "dead", "--clear", "--redis-url", redis_url)
    assert cleared.output == "1 deleted\n"
    left = await asyncio.to_thread(run, "dead", "--redis-url", redis_url)
    assert left.output == "No dead letter.\n"


# chat and up, as far as they go alone; tests/e2e has the rest


def test_chat_says_how_to_start_a_server_that_is_not_there(run, closed_port):
    done = run("chat", "--url", f"http://127.0.0.1:{closed_port}", "--message", "hello")
    assert done.exit_code == 1
    assert "No server answers at" in done.output
    assert "queueserve up" in done.output


def test_up_refuses_a_port_that_is_taken_before_it_starts_anything(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("up", "--port", str(port), "--data-dir", str(tmp_path), "--engine", "fake")
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: cannot listen on 127.0.0.1:{port}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address, lines",
    [
        (
            Address("http", "127.0.0.1", 8000, "redis://127.0.0.1:6379/0"),
            ["curl http://127.0.0.1:8000/v1/chat/completions ", "queueserve chat\n", "redis-cli  "],
        ),
        (
            Address("https", "0.0.0.0", 8080, "redis://127.0.0.1:6390/0"),
            ["curl https://127.0.0.1:8080/", "chat --url https://127.0.0.1:8080\n", "cli -p 6390 "],
        ),
        (
            Address("http", "::", 8000, "redis://:secret@redis.example:6379/2"),
            ["curl http://[::1]:8000/", "redis-cli -u with your Redis URL "],
        ),
        (
            Address("http", "::1", 8000, "redis://redis.example:6379/2"),
            ["curl http://[::1]:8000/", "redis-cli -u redis://redis.example:6379/2 "],
        ),
    ],
)
def test_the_welcome_names_what_can_be_pasted(address, lines):
    text = welcome(address, "m")
    for line in lines:
        assert line in text
    assert "secret" not in text


def test_the_welcome_of_a_model_that_does_not_chat_asks_for_what_it_does():
    text = welcome(Address("http", "127.0.0.1", 8000, "redis://h"), "m", chats=False)
    assert "curl http://127.0.0.1:8000/v1/rerank " in text
    assert "queueserve chat" not in text


README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_readme_has_every_option(command):
    options = {option.opts[0] for option in options_of(command)}
    assert {option for option in options if f"`{option}`" not in README} == set()


def test_the_readme_has_no_option_that_is_not_there():
    params = [param for command in COMMANDS for param in command.params]
    options = {name for param in params for name in (*param.opts, *param.secondary_opts)}
    ours = README[README.index("## Commands") : README.index("### Docker")]
    ours = re.sub(r"`-- --[^`]+`", "", ours)  # what is vLLM's
    assert set(re.findall(r"--[a-z][a-z0-9-]+", ours)) - options == set()
