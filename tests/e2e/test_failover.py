"""A worker dies in mid-stream: the same stream goes on from the token where it stood."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

SLOW = ("--engine", "fake", "--fake-tick", "0.03")
PROMPT = [{"role": "user", "content": "Tell me about queues, 請用中文 🙂"}]
# What is asked, what of the first choice is there when the worker dies, and how it ends.
CASES = {
    "greedy": ({"temperature": 0}, "in line queue", "length"),
    "in a character of several tokens": ({"temperature": 1, "seed": 7}, "reads runs", "length"),
    "in a stop string, which is held back": (
        {"temperature": 1, "seed": 11, "stop": ["zzz never", " and, batch key reads the that"]},
        "日\n🙂日",
        "stop",
    ),
    "two choices": ({"temperature": 1, "seed": 3, "n": 2}, "from step", "length"),
}


def texts(stream, *, at=None, then=None) -> dict[int, tuple[str, str]]:
    """The text of each choice and why it ended.

    `then` is called once, after `at` chunks, or when the first choice has the text `at`.
    """
    parts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for count, chunk in enumerate(stream):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        if at == count or (isinstance(at, str) and at in parts.get(0, "")):
            at = None
            then()
    assert at is None, "the stream ended before `then`"
    assert reasons.keys() == parts.keys(), "a choice that did not end"
    return {index: (text, reasons[index]) for index, text in parts.items()}


def ask(client, **sampling):
    sampling = {"max_tokens": 60, "extra_body": {"ignore_eos": True}, **sampling}
    return client.chat.completions.create(model="m", messages=PROMPT, stream=True, **sampling)


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_that_of_an_undisturbed_run(cluster, until, case):
    sampling, cut, reason = CASES[case]
    url, _ = cluster.api()
    client = cluster.client(url)
    cluster.worker(*SLOW)
    undisturbed = texts(ask(client, **sampling))
    assert {why for _, why in undisturbed.values()} == {reason}
    cluster.worker(*SLOW)
    killed = []

    def kill_all_that_run() -> None:
        killed.extend(set(cluster.running().values()))
        for worker in killed:
            os.kill(cluster.pid_of(worker), signal.SIGKILL)
        cluster.worker(*SLOW)

    assert texts(ask(client, **sampling), at=cut, then=kill_all_that_run) == undisturbed
    assert killed
    until(lambda: not cluster.running(), "the slots being free again")


def test_a_worker_that_drains_gives_back_what_it_cannot_finish(cluster, until):
    url, _ = cluster.api()
    client = cluster.client(url)
    first = cluster.worker(*SLOW, "--grace", "0.2")
    undisturbed = texts(ask(client, temperature=0))
    cluster.worker(*SLOW)
    stream = ask(client, temperature=0)

    def drain() -> None:
        busy = next(iter(cluster.running().values()))
        os.kill(cluster.pid_of(busy), signal.SIGTERM)

    assert texts(stream, at=10, then=drain) == undisturbed
    until(lambda: len(cluster.workers()) == 1, "the draining worker's leave")
    assert first.poll() in (None, 0)


def test_a_stopped_worker_that_wakes_after_its_lease_says_nothing(cluster, until):
    url, _ = cluster.api()
    client = cluster.client(url)
    cluster.worker(*SLOW)
    undisturbed = texts(ask(client, temperature=1, seed=5, max_tokens=200))
    cluster.worker(*SLOW)
    zombies = []

    def stop() -> None:
        pid = cluster.pid_of(next(iter(cluster.running().values())))
        os.kill(pid, signal.SIGSTOP)
        zombies.append(pid)

    with ThreadPoolExecutor() as pool:
        stream = ask(client, temperature=1, seed=5, max_tokens=200)
        answer = pool.submit(texts, stream, at=10, then=stop)
        until(lambda: zombies, "the stop")
        until(lambda: len(cluster.workers()) == 1, "the zombie's expiry")
        os.kill(zombies[0], signal.SIGCONT)
        assert answer.result(timeout=60) == undisturbed
    until(lambda: len(cluster.workers()) == 2, "the return of the zombie under a new id")


def test_a_job_that_kills_every_worker_ends(cluster, until):
    url, _ = cluster.api()
    client = cluster.client(url)
    for _ in range(2):
        cluster.worker(*SLOW)
    killed = []

    def kill_whoever_runs_it() -> None:
        while len(killed) < 3:
            worker = until(lambda: next(iter(cluster.running().values()), None), "a dispatch")
            if worker not in killed:
                os.kill(cluster.pid_of(worker), signal.SIGKILL)
                killed.append(worker)
                cluster.worker(*SLOW)

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill_whoever_runs_it)
        with pytest.raises(openai.APIError, match="not tried again"):
            texts(ask(client, temperature=0, max_tokens=2000))
        killing.result(timeout=60)
