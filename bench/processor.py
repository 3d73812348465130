"""Processor time that running programs spend while something is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessorTime:
    """Counts from its making on. Children are not counted."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = self._now()

    def spent(self) -> dict[str, float]:
        """Seconds by name; a program that has ended is left out."""
        now = self._now()
        return {name: now[name] - self._before[name] for name in now if name in self._before}

    def _now(self) -> dict[str, float]:
        found = {}
        for name, pid in self._pids.items():
            try:
                text = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                continue
            fields = text.rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        return found
