"""An engine in this process, without Redis and HTTP: vLLM's AsyncLLM, or one of our adapters.

The same streams as `gpu_load.py` sends, and the same JSON, one object a number of streams. With
`--adapter` the streams go through that adapter of QueueServe, with which its own cost shows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

from bench.gpu_load import Stream, read_loads, summary
from queueserve.protocol import Sampling
from workers.adapters import EngineOptions, ModelSource, make_engine
from workers.engines.base import Output, Sequence


async def vllm_rounds(options: argparse.Namespace) -> None:
    """AsyncLLM as its makers show it: a task for each request."""
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    args = parser.parse_args(["--model", options.model, *options.arguments])
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args))
    params = SamplingParams(
        temperature=0,
        max_tokens=options.tokens,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )

    async def one(name: str, prompt: list[int]) -> Stream:
        stream = Stream(began=time.perf_counter())
        inputs: Any = {"prompt_token_ids": prompt}
        async for output in llm.generate(inputs, params, request_id=name):
            stream.times.append(time.perf_counter())
            stream.tokens += len(output.outputs[0].token_ids)
        stream.times.append(stream.times[-1])  # as the event that carries the usage
        return stream

    async def stream(name: str, prompts: list[list[int]]) -> list[Stream]:
        return [await one(f"{name}-{at}", prompt) for at, prompt in enumerate(prompts)]

    async def rounds_of(prompts: list[list[list[int]]], number: int) -> list[Stream]:
        of_all = await asyncio.gather(
            *(stream(f"{number}-{at}", own) for at, own in enumerate(prompts))
        )
        return [one for streams in of_all for one in streams]

    await rounds(options, rounds_of)
    llm.shutdown()


class Driver:
    """Gives an adapter the requests of its streams, as a worker would, and notes its tokens."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._sampling = Sampling(temperature=0.0, max_tokens=options.tokens, ignore_eos=True)
        self._streams: dict[str, Stream] = {}
        self._following: dict[str, list[list[int]]] = {}  # what the stream asks after this request
        self._over = asyncio.Event()
        source = ModelSource(path=options.model, origin="", engine=options.adapter, name="m")
        self.engine = make_engine(
            source,
            EngineOptions(
                slots=max(streams for streams, _ in options.loads),
                context_length=options.context_length,
                dtype=options.dtype,
                arguments=tuple(options.arguments),
            ),
        )

    def sink(self, outputs: list[Output]) -> None:
        """Take the tokens of one step."""
        now = time.perf_counter()
        for output in outputs:
            if output.error is not None:
                raise output.error
            stream = self._streams[output.id]
            if output.tokens:
                stream.times.append(now)
                stream.tokens += len(output.tokens)
            if output.finish is not None:
                stream.times.append(now)
                if following := self._following.pop(output.id):
                    self._add(f"{output.id}+", following)
        if not self._following:
            self._over.set()

    def _add(self, name: str, prompts: list[list[int]]) -> None:
        self._following[name] = prompts[1:]
        self._streams[name] = Stream(began=time.perf_counter())
        self.engine.add(Sequence(id=name, prompt=tuple(prompts[0]), sampling=self._sampling))

    async def round_of(self, prompts: list[list[list[int]]], number: int) -> list[Stream]:
        """Run the requests of every stream."""
        self._streams.clear()
        self._over.clear()
        for at, own in enumerate(prompts):
            self._add(f"{number}-{at}", own)
        async with asyncio.timeout(240):
            await self._over.wait()
        return list(self._streams.values())


async def adapter_rounds(options: argparse.Namespace) -> None:
    """One of QueueServe's adapters, driven as its worker drives it."""
    driver = Driver(options)
    await driver.engine.start(driver.sink)
    await rounds(options, driver.round_of)
    await driver.engine.close()


async def rounds(options: argparse.Namespace, round_of: Any) -> None:
    """Print the rounds of every load, each after a warm-up."""
    draw = random.Random(options.seed)  # noqa: S311  # prompts, no secrets
    number = 0
    for size, requests in options.loads:
        results = []
        for _ in range(1 + options.rounds):
            number += 1
            prompts = [
                [
                    [draw.randrange(100, options.vocabulary) for _ in range(options.prompt)]
                    for _ in range(requests)
                ]
                for _ in range(size)
            ]
            results.append(summary(await round_of(prompts, number)))
        found = {"streams": size, "requests": requests, "rounds": results[1:]}
        print(json.dumps(found), flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="An engine in this process.")
    parser.add_argument("--model", required=True, type=str)
    parser.add_argument("--adapter", help="vllm or transformers; default: AsyncLLM itself")
    parser.add_argument("--loads", type=read_loads, default="1x4,64x1", help="STREAMSxREQUESTS,…")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--vocabulary", type=int, default=30_000)
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("arguments", nargs="*", help="after --: vLLM's")
    options = parser.parse_args()
    if not Path(options.model).is_dir():
        parser.error(f"there is no directory {options.model}")
    return options


if __name__ == "__main__":
    OPTIONS = parse()
    asyncio.run((adapter_rounds if OPTIONS.adapter else vllm_rounds)(OPTIONS))
