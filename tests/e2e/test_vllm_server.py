"""A worker of the openai engine before vLLM's own OpenAI server, a process that really runs."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from workers.engines.conversion import converted
from workers.models import resolve

pytest.importorskip("vllm")
pytestmark = pytest.mark.timeout(600)

LOADED = 270.0  # seconds, on a busy machine
HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
STORY = [{"role": "user", "content": "Tell me a story."}]  # of which a draw tells another one
MODEL = "smol"
LONG = 440  # tokens of an answer that is not waited for


class VllmServer:
    """What `vllm serve` runs, with the small model, and room for one request at once."""

    def __init__(self, model, port, log):
        self.root = f"http://127.0.0.1:{port}"
        self._log = log
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "1"),
            # Without a cache of prefixes the same request is computed in the same way each time.
            *("--enforce-eager", "--no-enable-prefix-caching"),
        ]
        self._process = None

    def up(self, until):
        """Start it, unless it runs; wait until it answers."""
        if self._process is None:
            env = os.environ | {"VLLM_NO_USAGE_STATS": "1"}
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdout=log, stderr=log, env=env, start_new_session=True
                )

            def is_up():
                assert self._process.poll() is None, self._log.read_text()[-3000:]
                return httpx.get(f"{self.root}/health").is_success

            until(is_up, "vLLM's server", LOADED)
        return self

    def kill(self):
        """End it and its engine process at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def metric(self, name):
        """A number that it counts; it has one engine."""
        told = httpx.get(f"{self.root}/metrics").text
        return float(re.search(rf"^{name}{{.*}} (.*)$", told, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def server_process(models_dir, free_port, tmp_path_factory):
    model = converted(Path(resolve("smollm2", "vllm").path), models_dir / "models")
    server = VllmServer(model, free_port(), tmp_path_factory.mktemp("vllm") / "log")
    yield server
    server.kill()


@pytest.fixture
def server(server_process, until):
    return server_process.up(until)


@pytest.fixture
def front(cluster, server):
    """A client of QueueServe before it."""
    url, _ = cluster.api()
    cluster.worker(
        *("--engine", "openai", "--model-path", MODEL, "--api-base", f"{server.root}/v1"),
        model=MODEL,
    )
    return cluster.client(url)


@pytest.fixture
def behind(server):
    with openai.OpenAI(base_url=f"{server.root}/v1", api_key="none", timeout=150) as client:
        yield client


def read(stream):
    """The text of a stream, why it ended, and the tokens of its usage."""
    text, reason, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
            reason = choice.finish_reason or reason
    return text, reason, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "own",
    [
        {"temperature": 0, "max_tokens": 24, "messages": STORY},
        {"temperature": 0.9, "seed": 7, "max_tokens": 24},
        {"temperature": 0, "max_tokens": 24, "extra_body": {"min_tokens": 20}},
        {"temperature": 2, "seed": 3, "max_tokens": 24, "extra_body": {"top_k": 2}},
        {"extra_body": {"structured_outputs": {"regex": "[ab]{12}"}}, "max_tokens": 24, "seed": 1},
    ],
)
def test_a_streamed_chat_is_that_of_the_server(front, behind, own):
    own = {"model": MODEL, "messages": HELLO, **own, **STREAMED}
    expected = read(behind.chat.completions.create(**own))
    answer = read(front.chat.completions.create(**own))
    assert answer == expected


def test_a_streamed_completion_is_that_of_the_server(front, behind):
    own = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24}
    expected = read(behind.completions.create(**own, **STREAMED))
    answer = read(front.completions.create(**own, **STREAMED))
    assert answer == expected


def test_a_client_that_goes_away_frees_the_slot_there(front, server):
    before = server.metric("vllm:generation_tokens_total")
    own = {"max_tokens": LONG, "extra_body": {"ignore_eos": True}}
    stream = front.chat.completions.create(model=MODEL, messages=HELLO, stream=True, **own)
    next(stream)
    stream.close()
    answer = front.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
    assert answer.usage.completion_tokens == 3
    # The first one ended before it had all its tokens, and left its place to the second.
    assert 3 < server.metric("vllm:generation_tokens_total") - before < LONG


def test_a_refusal_is_that_of_the_server(front, behind):
    own = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 900}]}
    with pytest.raises(openai.BadRequestError):
        behind.chat.completions.create(**own)
    with pytest.raises(openai.BadRequestError) as refused:
        front.chat.completions.create(**own)
    assert "512" in refused.value.body["message"]


def test_a_worker_is_gone_when_its_server_is(front, cluster, server, until):
    stream = front.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        stream=True,
        max_tokens=LONG,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    server.kill()
    with pytest.raises(openai.APIError):
        list(stream)
    until(lambda: not cluster.workers(MODEL), "the leaving of its worker")
    with pytest.raises(openai.APIStatusError):
        front.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
