"""A child process that must not outlive this one, however this one ends.

The parent holds one end of a pipe, a small shell the other. When the parent is gone, by kill -9 or
any other way, the kernel closes its end; the shell reads the end of file and ends the child: with
SIGTERM, and with SIGKILL after a grace time. Linux has PR_SET_PDEATHSIG for this, but it fires
when the *thread* that started the child ends, needs code between fork and exec, and does not exist
on macOS.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

_SCRIPT = """
pid=$1 grace=$2 born=$3
is_there() {                    # the same process: another one may have its number by now
  kill -0 "$pid" 2>/dev/null || return 1
  [ -n "$born" ] || return 0
  read -r stat < "/proc/$pid/stat" || return 1
  set -- ${stat##*) }
  [ "${20}" = "$born" ]
}
trap '' HUP INT TERM
read -r line && exit 0          # a line: released; end of file: the parent is gone
is_there && kill -TERM "$pid" || exit 0
n=0
while [ "$n" -lt "$grace" ]; do
  sleep 1
  is_there || exit 0
  n=$((n + 1))
done
kill -KILL "$pid"
"""


def _born(pid: int) -> str:
    """When the process started, in the kernel's ticks; empty where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


class Tether:
    """Ties process `pid` to this process until `release`, which must follow the child's end."""

    def __init__(self, pid: int, *, grace: int = 30) -> None:
        # A session of its own: Ctrl-C in the terminal, or a signal to the group, must not end it.
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "queueserve-tether", str(pid), str(grace), _born(pid)],
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
