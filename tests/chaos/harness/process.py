"""What every process under test runs: an agent, the audit, perhaps a bug; then the real command.

python -m harness.process DIRECTORY NAME BUG MODULE ARGUMENT…
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from harness import agent
from harness.bugs import BUGS

from queueserve.queue.functions import Functions

_AUDIT = (Path(__file__).parent / "audit.lua").read_text()
_REGISTRATION = "redis.register_function('qs_submit_"


def _audited(source: str) -> str:
    before, found, after = source.partition(_REGISTRATION)
    if not found:
        raise ValueError("the library does not register its functions as it did")
    return f"{before}\n{_AUDIT}\n{found}{after}"


def _change_library(bug: str) -> None:
    plain = Functions.__init__
    change = BUGS[bug] if bug else str

    def init(self, *args, **options) -> None:
        plain(self, *args, **options)
        self._source = _audited(change(self._source))

    Functions.__init__ = init


def _use_faulty_engine(journal: Path) -> None:
    from harness.engine import FaultyEngine  # noqa: PLC0415 - API servers have no engine

    from workers.adapters import ADAPTERS, Adapter, EngineOptions, ModelSource  # noqa: PLC0415

    def make(_source: ModelSource, options: EngineOptions) -> FaultyEngine:
        return FaultyEngine(journal=journal, slots=options.slots or 8, tick=options.tick)

    ADAPTERS["fake"] = Adapter(make)


def main() -> None:
    """Become the process that the arguments name."""
    directory, name, bug, module, *arguments = sys.argv[1:]
    agent.serve(str(Path(directory) / f"{name}.sock"))
    _change_library(bug)
    if module == "workers.cli":
        _use_faulty_engine(Path(directory) / f"{name}.journal")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
