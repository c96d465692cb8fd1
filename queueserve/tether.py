"""A child process that must not outlive this one, however this one ends.

The parent holds one end of a pipe, a small shell the other. When the parent is gone, by kill -9 or
any other way, the kernel closes its end; the shell reads the end of file and ends the child: with
SIGTERM, and with SIGKILL after a grace time. Linux has PR_SET_PDEATHSIG for this, but it fires
when the *thread* that started the child ends, needs code between fork and exec, and does not exist
on macOS.
"""

from __future__ import annotations

import subprocess
from typing import Self

_SCRIPT = """
trap '' HUP INT TERM
read -r line && exit 0          # a line: released; end of file: the parent is gone
kill -TERM "$1" 2>/dev/null || exit 0
n=0
while [ "$n" -lt "$2" ]; do
  sleep 1
  kill -0 "$1" 2>/dev/null || exit 0
  n=$((n + 1))
done
kill -KILL "$1" 2>/dev/null
"""


class Tether:
    """Ties process `pid` to this process until `release`, which must follow the child's end."""

    def __init__(self, pid: int, *, grace: int = 30) -> None:
        # A session of its own: Ctrl-C in the terminal, or a signal to the group, must not end it.
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "queueserve-tether", str(pid), str(grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """Let go; what the child was is not touched any more. Idempotent."""
        pipe = self._shell.stdin
        if pipe is None or pipe.closed:
            return
        try:
            pipe.write(b"released\n")
            pipe.close()
        except BrokenPipeError:
            pass  # somebody has killed the shell; then there is nothing to let go of
        self._shell.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
