"""A worker dies in mid-stream: the same stream goes on from the token where it stood."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

# An answer that is disturbed takes half a minute by itself, for which no busy machine stops a test;
# what it should be, and what goes on with it, comes from a quick worker.
SLOW, QUICK = ("--engine", "fake", "--fake-tick", "0.03"), ("--engine", "fake", "--fake-tick", "0")
PROMPT = [{"role": "user", "content": "Tell me about queues, 請用中文 🙂"}]
# What is asked, and what of the first choice is there when the worker dies.
CASES = {
    "greedy": ({"temperature": 0}, "in line queue"),
    "in a character of several tokens": ({"temperature": 1, "seed": 7}, "reads runs"),
    "two choices": ({"temperature": 1, "seed": 3, "n": 2}, "from step"),
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
    sampling = {"max_tokens": 1000, "extra_body": {"ignore_eos": True}, **sampling}
    return client.chat.completions.create(model="m", messages=PROMPT, stream=True, **sampling)


def undisturbed(cluster, client, **sampling):
    """What a quick worker says, which leaves again."""
    worker = cluster.worker(*QUICK)
    said = texts(ask(client, **sampling))
    worker.terminate()
    assert worker.wait(60) == 0
    return said


def kill_all_that_run(cluster) -> None:
    killed = set(cluster.running().values())
    assert killed
    for worker in killed:
        os.kill(cluster.pid_of(worker), signal.SIGKILL)


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_that_of_an_undisturbed_run(cluster, until, case):
    sampling, cut = CASES[case]
    url, _ = cluster.api()
    client = cluster.client(url)
    expected = undisturbed(cluster, client, **sampling)
    assert {why for _, why in expected.values()} == {"length"}
    cluster.worker(*SLOW)

    def fail_over() -> None:
        kill_all_that_run(cluster)
        cluster.worker(*QUICK)

    assert texts(ask(client, **sampling), at=cut, then=fail_over) == expected
    until(lambda: not cluster.running(), "the slots being free again")


def test_a_stop_string_that_is_held_back_when_the_worker_dies_is_still_found(cluster):
    url, _ = cluster.api()
    client = cluster.client(url)
    sampling = {"temperature": 1, "seed": 11}
    [(whole, _)] = undisturbed(cluster, client, **sampling).values()
    stop = whole[80:1080]  # long enough that the worker dies in the middle of it
    cluster.worker(*SLOW)

    def fail_over() -> None:
        time.sleep(0.3)  # some of it is there, and held back
        kill_all_that_run(cluster)
        cluster.worker(*QUICK)

    stream = ask(client, **sampling, stop=["zzz never", stop])
    said = texts(stream, at=whole[70:80], then=fail_over)
    assert said == {0: (whole[:80], "stop")}


def test_a_worker_that_drains_gives_back_what_it_cannot_finish(cluster, until):
    url, _ = cluster.api()
    client = cluster.client(url)
    expected = undisturbed(cluster, client, temperature=0)
    slow = cluster.worker(*SLOW, "--grace", "0.2")

    def drain() -> None:
        cluster.worker(*QUICK)
        slow.terminate()

    assert texts(ask(client, temperature=0), at=10, then=drain) == expected
    until(lambda: len(cluster.workers()) == 1, "the draining worker's leave")
    assert slow.wait(60) == 0


def test_a_stopped_worker_that_wakes_after_its_lease_says_nothing(cluster, until):
    url, _ = cluster.api()
    client = cluster.client(url)
    expected = undisturbed(cluster, client, temperature=1, seed=5)
    slow = cluster.worker(*SLOW)
    stopped = threading.Event()

    def stop() -> None:
        cluster.worker(*QUICK)
        slow.send_signal(signal.SIGSTOP)
        stopped.set()

    with ThreadPoolExecutor() as pool:
        stream = ask(client, temperature=1, seed=5)
        answer = pool.submit(texts, stream, at=10, then=stop)
        until(stopped.is_set, "the stop")
        until(lambda: len(cluster.workers()) == 1, "the zombie's expiry")
        slow.send_signal(signal.SIGCONT)
        assert answer.result(timeout=60) == expected
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
