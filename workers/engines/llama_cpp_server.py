"""llama.cpp's server, as the xllamacpp wheel has it: the only file that knows its messages.

The server decodes all running requests in one batch, each in a slot of its own. `complete` blocks
its thread; the answers come to a callback on that thread.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from queueserve.errors import (
    ContextLengthExceededError,
    EngineError,
    InvalidRequestError,
    QueueServeError,
)
from queueserve.protocol import LOWEST, TokenLogprob
from workers.engines import gguf_header
from workers.engines import llama_cpp_requests as requests
from workers.engines import llama_cpp_sizing as sizing

log = logging.getLogger(__name__)

_HINT = "pip install 'queueserve[llama-cpp]'"
_ERRORS_ONLY, _EVERYTHING = 1, 5  # llama.cpp's levels of verbosity
# Tokens of prompts in one step. A step is how long others wait for their next token, and an abort
# for its slot; on a CPU a larger one is not faster.
_CPU_BATCH, _GPU_BATCH = 128, 512
# GNU OpenMP lets a thread spin 300,000 rounds for the others before it sleeps. Where another
# process wants a CPU too that is 5 times slower than 3,000 rounds; where none does, no faster.
_SPIN = ("GOMP_SPINCOUNT", "3000")


@dataclass(frozen=True, slots=True)
class Progress:
    """Part of the prompt has been computed."""

    cached: int  # tokens of the prompt that were in the slot's cache


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, after all tokens that were held back because they ended inside a character."""

    token: int
    count: int  # tokens drawn for this request so far
    data: bytes | None  # of this token and the ones held back; None where llama.cpp garbled them
    logprob: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a request."""

    reason: Literal["eos", "limit"]
    count: int  # tokens drawn, the end-of-sequence token included
    tokens: tuple[int, ...]  # all of them, if the request was not streamed
    logprobs: tuple[
        TokenLogprob, ...
    ]  # of those that ended no text inside a character; not streamed
    cached: int


Message: TypeAlias = Progress | Drawn | Ended


class LlamaServer:
    """One loaded model. Construction takes seconds: call it in a thread.

    `slots` and `context`, tokens of one sequence, are as wanted, or what suits; the attributes say
    what they have become, and whether layers are `on_gpu`. One that `embeds` gives vectors, and
    completes nothing. Raises EngineError with what to do about it.
    """

    def __init__(
        self,
        path: Path,
        header: gguf_header.Header,
        *,
        slots: int | None,
        context: int | None,
        threads: int,
        gpu_layers: int | None,
        embeds: bool = False,
    ) -> None:
        library = _library()
        self.version: str = library.__version__
        self.key = secrets.token_urlsafe()
        devices = _devices(library)
        self.slots, self.context_length = sizing.choose(
            header,
            devices,
            weights=gguf_header.size(path),
            slots=slots,
            context=context,
            threads=threads,
            gpu_layers=gpu_layers,
        )
        length = sizing.padded(self.context_length)
        params = library.CommonParams()
        params.model.path = str(path)
        params.n_parallel = self.slots
        params.n_ctx = self.slots * length
        params.embedding = embeds
        self.on_gpu = sizing.on_gpu(devices, gpu_layers)
        # An encoder looks at a whole input at once.
        step = length if embeds else max(self.slots, _GPU_BATCH if self.on_gpu else _CPU_BATCH)
        params.n_batch = params.n_ubatch = step
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        # The constructor holds Python's lock, so it should do no more than it must: to see how many
        # layers fit, llama.cpp loads most of the model twice, and its warm-up is what our first
        # request is.
        params.fit_params = self.on_gpu
        params.warmup = False
        # A sequence is always sent to the slot that knows most of it, so that nothing is gained by
        # llama.cpp's own search and its copies of idle slots (up to 8 GiB).
        params.cache_ram_mib = 0
        params.api_keys = [self.key]  # xllamacpp always opens a port
        params.endpoint_slots = params.ui = False
        params.verbosity = _EVERYTHING if log.isEnabledFor(logging.DEBUG) else _ERRORS_ONLY
        try:
            self._server = library.Server(params)
        except RuntimeError as error:
            raise EngineError(
                f"llama.cpp cannot load {path}: the file is damaged, of a kind that this version "
                f"({self.version}) does not know, or there is no memory for a context of "
                f"{self.slots} x {length} tokens; llama.cpp's own lines above say which"
            ) from error
        self.address: str = self._server.listening_address
        self.ends = frozenset[int]() if embeds else self._ends()

    def complete(self, request: dict[str, Any], on_message: Callable[[Message], bool]) -> None:
        """Run one request; `on_message` returns True to cancel it. Blocks until it has ended.

        Raises what `on_message` raises, InvalidRequestError, ContextLengthExceededError, and
        EngineError where llama.cpp fails.
        """
        failure: Exception | None = None
        over = False

        def callback(answer: dict[str, Any]) -> bool:
            # xllamacpp swallows exceptions.
            nonlocal failure, over
            try:
                message = _message(answer)
                over = on_message(message) or isinstance(message, Ended)
            except Exception as error:  # noqa: BLE001
                failure = error
            return over or failure is not None

        self._server.handle_completions(request, callback)
        if failure is not None:
            raise failure
        if not over:
            raise EngineError("llama.cpp ended a sequence without a reason")

    def answer(self, request: dict[str, Any]) -> Ended:
        """Run a request that is not streamed. Raises as `complete` does."""
        answers: list[Ended] = []

        def on_message(message: Message) -> bool:
            if isinstance(message, Ended):
                answers.append(message)
            return False

        self.complete(request, on_message)
        return answers[0]

    def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Return a float32 vector of length 1 for each input. Blocks. Raises as `complete` does."""
        answer = self._server.handle_embeddings({"input": list(map(list, inputs))})
        if "error" in answer:
            raise _error(answer["error"])
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            return [array("f", row["embedding"]) for row in rows]
        except (LookupError, TypeError) as error:
            raise EngineError(
                f"llama.cpp sent vectors in a way that is not known: {error!r}"
            ) from error

    def close(self) -> None:
        """Give the memory back; nothing may run any more."""
        del self._server

    def _ends(self) -> frozenset[int]:
        answers: list[dict[str, Any]] = []
        self._server.handle_completions(requests.ends(), answers.append)
        try:
            banned = answers[0]["__verbose"]["generation_settings"]["logit_bias"]
            return frozenset(entry["token"] for entry in banned)
        except (LookupError, TypeError) as error:
            raise EngineError(
                f"xllamacpp {self.version} answers in a way that is not known: {answers}"
            ) from error


def _library() -> Any:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*_SPIN)
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as error:
        raise EngineError(f"the llama_cpp engine is not installed: {_HINT}") from error
    except ImportError as error:  # libgomp.so.1, in a slim container
        raise EngineError(
            f"xllamacpp cannot be loaded: {error}; on Debian, apt-get install libgomp1"
        ) from error


def _devices(library: Any) -> list[sizing.Device]:
    """Return where this build of llama.cpp can compute."""
    kinds = library.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return [
        sizing.Device(is_gpu=found["type"] in gpus, free=found["memory_free"])
        for found in library.get_device_info()
    ]


def _message(answer: dict[str, Any]) -> Message:
    if "error" in answer:
        raise _error(answer["error"])
    try:
        own = answer["__verbose"]
        probabilities = own.get("completion_probabilities", [])
        if "prompt_progress" in own:
            return Progress(own["prompt_progress"]["cache"])
        if own["stop"]:
            return Ended(
                reason="eos" if own["stop_type"] == "eos" else "limit",
                count=own["tokens_predicted"],
                tokens=tuple(own["tokens"]),
                logprobs=tuple(map(_logprob, probabilities)),
                cached=own["timings"]["cache_n"],
            )
        return Drawn(
            token=own["tokens"][0],
            count=own["tokens_predicted"],
            data=_data(own["content"], probabilities),
            logprob=_logprob(probabilities[0]) if probabilities else None,
        )
    except (LookupError, TypeError) as error:
        raise EngineError(f"llama.cpp sent a message that is not known: {answer}") from error


def _data(text: str, probabilities: list[dict[str, Any]]) -> bytes | None:
    if probabilities:
        return bytes(probabilities[0]["bytes"])
    # In text, bytes that are no UTF-8 have become U+FFFD.
    return None if "\ufffd" in text else text.encode()


def _logprob(entry: dict[str, Any]) -> TokenLogprob:
    top = tuple((one["id"], max(LOWEST, one["logprob"])) for one in entry["top_logprobs"])
    return TokenLogprob(max(LOWEST, entry["logprob"]), top)


def _error(error: dict[str, Any]) -> QueueServeError:
    message = str(error.get("message", error))
    if error.get("type") == "exceed_context_size_error":
        return ContextLengthExceededError(message, param="prompt")
    if error.get("type") == "invalid_request_error":
        return InvalidRequestError(message)
    return EngineError(f"llama.cpp: {message}")
