"""One worker process: the models it was started with, and those it is told to load or unload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from queueserve.errors import QueueServeError
from queueserve.queue.connection import open_redis
from queueserve.queue.keys import Keys
from queueserve.queue.orders import Load, Order, OrderError, Orders, Unload
from queueserve.queue.tasks import end
from workers.incarnation import process_name
from workers.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Model:
    """A worker that runs."""

    worker: Worker
    stop: asyncio.Event  # tells it to finish and leave
    task: asyncio.Task[None]


class Host:
    """Runs the workers of a process.

    What it was started with must run: if one of those fails, the process ends with its reason. A
    model that is loaded later and fails is only an answer to whoever ordered it.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        make: Callable[[Load], Worker],
        *,
        redis_url: str,
        prefix: str,
    ) -> None:
        self._first = workers
        self._make = make
        self._redis = open_redis(redis_url)
        self._orders = Orders(self._redis, Keys(prefix), process_name(), self._obey)
        self._models: dict[str, _Model] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set and every worker has left. Raises what ended a first one."""
        listening = asyncio.create_task(self._orders.run())
        stopping = asyncio.create_task(stop.wait())
        first = {self._start(worker).task for worker in self._first}
        try:
            await _until(stopping, first)
            await end({listening})
            await self._leave()
        finally:
            await end({listening, stopping, *(model.task for model in self._models.values())})
            await self._redis.aclose()

    async def _leave(self) -> None:
        models = list(self._models.values())
        for model in models:
            model.stop.set()
        for outcome in await asyncio.gather(*(m.task for m in models), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _start(self, worker: Worker) -> _Model:
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop), name=worker.names[0])
        model = self._models[worker.names[0]] = _Model(worker, stop, task)
        task.add_done_callback(lambda _: self._models.pop(worker.names[0], None))
        return model

    # Orders

    async def _obey(self, order: Order) -> str:
        match order:
            case Load():
                return await self._load(order)
            case Unload():
                return await self._unload(order.model)

    async def _load(self, order: Load) -> str:
        worker = self._make(order)
        if taken := set(worker.names) & self._served():
            raise OrderError(f"{', '.join(sorted(taken))} is served by this process already")
        model = self._start(worker)
        joined = asyncio.create_task(worker.joined.wait())
        try:
            await asyncio.wait({joined, model.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            joined.cancel()
        if model.task.done():
            await _explained(model.task)
        return f"{process_name()} serves {', '.join(worker.names)}"

    async def _unload(self, name: str) -> str:
        for model in list(self._models.values()):
            if name in model.worker.names:
                model.stop.set()
                await asyncio.wait({model.task})
                await _explained(model.task)
                return f"{process_name()} has unloaded {name}"
        known = ", ".join(sorted(self._served())) or "nothing"
        raise OrderError(f"this process does not serve {name}: it serves {known}")

    def _served(self) -> set[str]:
        return {name for model in self._models.values() for name in model.worker.names}


async def _until(stopping: asyncio.Task[bool], workers: set[asyncio.Task[None]]) -> None:
    """Wait for the end; a worker that was unloaded is none. Raises what ended a worker."""
    running: set[asyncio.Task[None]] = set(workers)
    while not stopping.done():
        done, _ = await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        for task in done & running:
            task.result()
        running -= done


async def _explained(task: asyncio.Task[None]) -> None:
    """Raise what a worker ended with as the answer to an order."""
    try:
        await task
    except asyncio.CancelledError:
        raise OrderError("the process is ending") from None
    except QueueServeError as error:
        raise OrderError(error.message) from error
    except Exception as error:
        log.exception("a worker failed")
        raise OrderError(f"the worker failed: {error!r}") from error
