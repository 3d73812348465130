"""What every row gets: how much to measure, where files go, and a lab that comes up once."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab import BenchLab

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
CACHE = ROOT / "build" / "cache" / "bench"


@dataclass(slots=True)
class Bench:
    """One run of the benchmark.

    :param size_mib: content of the disks of the initial replications.
    """

    quick: bool
    size_mib: int
    directory: Path = BUILD
    _lab: BenchLab | None = None
    _began: float = field(default_factory=time.monotonic)

    def runs(self, full: int, quick: int = 3) -> int:
        """How often to measure."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """A line of progress."""
        now = time.monotonic() - self._began
        print(f"[{now:6.1f} s] {text}", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def lab(self) -> BenchLab:
        """The lab, brought up by the first row that asks."""
        if self._lab is None:
            self.say("bringing a lab up: one primary, three nodes, three brokers, three etcd")
            self._lab = BenchLab(self.directory / "lab")
            self._lab.up()
        return self._lab

    def close(self) -> None:
        """Everything down."""
        if self._lab is not None:
            self._lab.down()
