"""Holds a process at a system call, so that a kill meets it exactly there."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

_HELD_US = 60_000_000


class Held:
    """strace on a process of any host: the ``nth`` call of ``name`` whose line contains ``text``
    is held for a minute, before it takes effect or after.
    """

    def __init__(self, pid: int, name: str, log: Path, *, after: bool = False, nth: int = 1):
        self._log = log
        self._pid = pid
        log.unlink(missing_ok=True)
        side = "delay_exit" if after else "delay_enter"
        inject = f"inject={name}:{side}={_HELD_US}:when={nth}"
        words = ["strace", "-f", "-qq", "-p", str(pid), "-e", f"trace={name}", "-e", inject]
        self._process = subprocess.Popen(
            [*words, "-o", str(log)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        self._nth = nth
        self._wait_attached(pid)

    def _wait_attached(self, pid: int) -> None:
        end = time.monotonic() + 10
        while True:
            tasks = Path(f"/proc/{pid}/task").glob("*/status")
            if all("TracerPid:\t0" not in path.read_text() for path in tasks):
                return
            assert self._process.poll() is None, self._process.communicate()[1]
            assert time.monotonic() < end, "strace does not attach"
            time.sleep(0.02)

    def wait(self, timeout_s: float = 20) -> str:
        """Until the call is held; its line."""
        end = time.monotonic() + timeout_s
        while True:
            lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
            calls = [line for line in lines if "resumed>" not in line and "(" in line]
            if len(calls) >= self._nth:
                return calls[self._nth - 1]
            assert self._process.poll() is None, "the process ended before the call"
            assert time.monotonic() < end, f"the call did not come; seen: {lines[-3:]}"
            time.sleep(0.01)

    def wait_killed(self, timeout_s: float = 10) -> None:
        """Until every thread of the process is dead or has SIGKILL pending."""
        end = time.monotonic() + timeout_s
        while not all(_doomed(path) for path in Path(f"/proc/{self._pid}/task").glob("*/status")):
            assert time.monotonic() < end, "nobody kills the process"
            time.sleep(0.005)

    def release(self) -> None:
        """Let go of the process."""
        self._process.kill()
        self._process.communicate()


def _doomed(status: Path) -> bool:
    try:
        text = status.read_text()
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    if fields["State"][0] in "ZX":
        return True
    return any(int(fields[name], 16) & 1 << 8 for name in ("SigPnd", "ShdPnd"))
