"""What runs in SGLang's thread: from a path to a running Engine, and its requests."""

from __future__ import annotations

import asyncio
import math
import uuid
from array import array
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import sglang
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.managers.io_struct import EmbeddingReqInput
from transformers import AutoTokenizer
from transformers.utils import cached_file

from queueserve.errors import (
    ContextLengthExceededError,
    EngineError,
    InvalidRequestError,
    QueueServeError,
)
from workers.engines.base import EngineInfo, Output, Sequence
from workers.engines.fingerprint import fingerprint
from workers.engines.loading import checkpoint_files
from workers.engines.sglang_arguments import engine_args
from workers.engines.sglang_requests import output, parameters, refusal
from workers.engines.transformers_tokenizer import TransformersTokenizer

Llm: TypeAlias = Any  # an Engine: sglang is not followed by mypy
Step: TypeAlias = Callable[[list[tuple[Sequence, Output]]], None]

_SHORT = 256  # tokens of prompt and answer
_KEPT_FREE = 4  # a prompt must leave so many more tokens than an answer needs


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    llm: Llm
    info: EngineInfo
    tokenizer: TransformersTokenizer
    dimensions: int  # of the vectors of a model that gives some
    ends: frozenset[int]  # the model's own end-of-sequence tokens
    vocabulary: int


def load(
    path: str, options: Mapping[str, object], *, adapters: Mapping[str, Path], arguments: Many[str]
) -> Loaded:
    """Start SGLang, which takes a minute, and describe what it has become.

    Raises EngineError for arguments that SGLang does not know, and for a model that it cannot run.
    """
    args = engine_args(path, options, adapters=adapters, given=arguments)
    llm = None
    try:
        llm = Engine(server_args=args)
        return _described(llm, args, adapters)
    except Exception as error:  # SGLang raises what it likes
        if llm is not None:
            llm.shutdown()
        raise EngineError(f"SGLang cannot run {path}: {error}") from error


def _described(llm: Llm, args: Any, adapters: Mapping[str, Path]) -> Loaded:
    backend = AutoTokenizer.from_pretrained(
        args.tokenizer_path or args.model_path,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
    config, generates = llm.tokenizer_manager.model_config, llm.get_model_info()["is_generation"]
    at = Path(cached_file(args.model_path, "config.json", revision=args.revision)).parent
    files = checkpoint_files(at)
    files += [file for path in adapters.values() for file in path.iterdir() if file.is_file()]
    traits = [str(config.dtype), args.quantization, *adapters]
    server = llm.get_server_info()
    context = server["max_req_input_len"] + _KEPT_FREE
    info = EngineInfo(
        engine="sglang",
        version=sglang.__version__,
        fingerprint=fingerprint(files, *filter(None, traits)),
        context_length=context,
        slots=_slots(server, context),
        tasks=("chat", "completion") if generates else ("embed",),
        adapters=tuple(adapters),
    )
    dimensions = 0 if generates else config.hidden_size
    ends = frozenset({*(config.hf_eos_token_id or ()), backend.eos_token_id} - {None})
    tokenizer = TransformersTokenizer(backend)
    return Loaded(llm, info, tokenizer, dimensions, ends, config.vocab_size)


def _slots(server: Mapping[str, Any], context: int) -> int:
    """Sequences at once: SGLang's own limit, while each has the cache for a short one."""
    most: int = server["internal_states"][0]["effective_max_running_requests_per_dp"]
    tokens: int = server["max_total_num_tokens"]
    return max(1, min(most, tokens // min(context, _SHORT)))


class Serving:
    """The requests of one engine. `step` is called once for all that a step of SGLang gave."""

    def __init__(self, loaded: Loaded, step: Step) -> None:
        self._llm = loaded.llm
        self._context = loaded.info.context_length
        self._ends = loaded.ends
        self._vocabulary = loaded.vocabulary
        self.loop: asyncio.AbstractEventLoop = loaded.llm.loop  # SGLang makes it for its thread
        self.dimensions = loaded.dimensions
        self._step = step
        self._given: list[tuple[Sequence, Output]] = []

    async def generate(self, sequence: Sequence) -> None:
        """Run a sequence to its end; SGLang drops it when this is cancelled."""
        try:
            left = self._left(sequence)
            if left <= 0:
                self._give(sequence, Output(sequence.id, finish="length"))
                return
            first = True
            async for given in await self._stream(sequence, left):
                self._give(sequence, output(sequence, given, first=first))
                first = False
        except QueueServeError as error:
            self._give(sequence, Output(sequence.id, error=error))
        except Exception as error:  # noqa: BLE001  # SGLang raises what it likes
            self._give(sequence, Output(sequence.id, error=refusal(sequence, error)))

    async def _stream(self, sequence: Sequence, left: int) -> Any:
        asked = sequence.sampling.logprobs
        return await self._llm.async_generate(
            input_ids=[*sequence.prompt, *sequence.generated],
            sampling_params=parameters(sequence, left=left, ends=self._ends),
            stream=True,
            return_logprob=asked is not None,
            top_logprobs_num=asked or 0,
            lora_path=sequence.adapter,
            # SGLang aborts all requests whose ids begin with the given one: none does with ours.
            rid=uuid.uuid4().hex,
            priority=sequence.priority,
        )

    def _left(self, sequence: Sequence) -> int:
        """How many tokens may come. Raises what speaks against it."""
        if not sequence.prompt:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        self._check_tokens((*sequence.prompt, *sequence.generated), param="prompt")
        room = self._context - len(sequence.prompt)
        if room <= 0:
            raise ContextLengthExceededError(
                f"the prompt has {len(sequence.prompt)} tokens, but the model's context is "
                f"{self._context} tokens, and the answer must fit in it too",
                param="messages",
            )
        wanted = sequence.sampling.max_tokens
        return (room if wanted is None else min(room, wanted)) - len(sequence.generated)

    def _check_tokens(self, tokens: Many[int], *, param: str) -> None:
        """Refuse what would end SGLang's scheduler, and with it this worker."""
        unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise InvalidRequestError(f"the model has no token {unknown}", param=param)

    def _give(self, sequence: Sequence, given: Output) -> None:
        """Collect what the requests' tasks say in one turn of the event loop, which is one step."""
        if not self._given:
            asyncio.get_running_loop().call_soon(self._flush)
        self._given.append((sequence, given))

    def _flush(self) -> None:
        given, self._given = self._given, []
        self._step(given)

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """A float32 vector of length 1 for each input.

        Raises EngineError, and InvalidRequestError for a token that the model does not have.
        """
        for tokens in inputs:
            self._check_tokens(tokens, param="input")
        try:
            return list(await asyncio.gather(*map(self._vector, inputs)))
        except Exception as error:  # SGLang raises what it likes
            raise EngineError(f"SGLang could not embed: {error}") from error

    async def _vector(self, tokens: tuple[int, ...]) -> array[float]:
        request = EmbeddingReqInput(input_ids=list(tokens))
        async for given in self._llm.tokenizer_manager.generate_request(request, None):
            vector = given["embedding"]
            length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
            return array("f", [value / length for value in vector])
        raise EngineError("SGLang gave no vector")

    def shutdown(self) -> None:
        """End SGLang's processes; it waits for them."""
        self._llm.shutdown()
