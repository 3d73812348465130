"""Control groups (v2): which processes belong to a host, freezing them, killing them all.

Membership is the identity of a lab's processes: it needs no pid files and survives any crash.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.model import LabError


def hierarchy() -> Path:
    """Mount point of the v2 hierarchy: /sys/fs/cgroup on Debian, elsewhere in some containers."""
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise LabError("no cgroup2 hierarchy is mounted; the lab needs one (freezer, kill)")


@dataclass(frozen=True, slots=True)
class Group:
    """One control group, existing or not."""

    path: Path

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        return self.path.exists()

    def children(self) -> list[Group]:
        if not self.exists():
            return []
        return [Group(child) for child in sorted(self.path.iterdir()) if child.is_dir()]

    def child(self, name: str) -> Group:
        return Group(self.path / name)

    def pids(self) -> list[int]:
        """Living members; zombies do not count."""
        try:
            return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def frozen(self) -> bool:
        try:
            return "frozen 1" in (self.path / "cgroup.events").read_text()
        except OSError:
            return False

    def freeze(self, wanted: bool, timeout_s: float = 5.0) -> None:
        """Stop or continue every member; returns when it is done."""
        (self.path / "cgroup.freeze").write_text("1" if wanted else "0")
        wait_for(lambda: self.frozen() == wanted, timeout_s, f"freezer of {self.path.name}")

    def kill(self) -> None:
        """SIGKILL to every member, frozen ones too."""
        if self.exists():
            (self.path / "cgroup.kill").write_text("1")

    def wait_empty(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while self.pids():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def remove(self) -> None:
        """Also kills what joined a moment ago: an `up` that died may have left a starter."""
        for child in self.children():
            child.remove()
        end = time.monotonic() + 5
        while self.exists():
            try:
                self.path.rmdir()
            except OSError:
                if time.monotonic() > end:
                    raise
                self.kill()
                time.sleep(0.01)


def wait_for(
    condition: Callable[[], object], timeout_s: float, what: str, step_s: float = 0.01
) -> None:
    """Poll ``condition`` until true; LabError after the timeout."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what}: nothing within {timeout_s:g} s")
        time.sleep(step_s)
