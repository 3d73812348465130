"""A guest's serial console as the host sees it: lines with the time at which they appeared."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_COUNT = re.compile(r"^COUNT (\d+)")
_VERIFY = re.compile(r"^VERIFY nonce=(\S+) first=(\d+) last_vda=(\d+) last_vdb=(\d+) bad=(\d+)")
_BOOT = re.compile(r"^BOOT nonce=(\S+)")
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Verified:
    """What a guest found on its disks at boot."""

    nonce: str
    first: int
    last_vda: int
    last_vdb: int
    bad: int


@dataclass(slots=True)
class Console:
    """Follows one console file from its beginning, in a thread."""

    path: Path
    counts: list[tuple[float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    verified: list[Verified] = field(default_factory=list)
    nonces: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> Console:
        """Begin to follow."""
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End; the file stays."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        rest = ""
        position = 0
        while not self._stop.is_set():
            try:
                with self.path.open("rb") as file:
                    file.seek(position)
                    data = file.read()
            except FileNotFoundError:
                data = b""
            position += len(data)
            if not data:
                self._stop.wait(_POLL_S)
                continue
            seen = time.time()
            *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
            for line in lines:
                self._line(seen, line.strip())

    def _line(self, seen: float, line: str) -> None:
        if match := _COUNT.match(line):
            self.counts.append((seen, int(match[1])))
        elif match := _VERIFY.match(line):
            nonce, *numbers = match.groups()
            self.verified.append(Verified(nonce, *map(int, numbers)))
        elif match := _BOOT.match(line):
            self.nonces.append(match[1])
        elif line.startswith(("WRITE-ERROR", "STALL")):
            self.errors.append(line)

    def last_count(self, before: float | None = None) -> int:
        """The newest COUNT, or the newest that appeared before a wall time (0: none)."""
        counts = [n for seen, n in list(self.counts) if before is None or seen < before]
        return counts[-1] if counts else 0

    def text(self) -> str:
        """The raw text so far."""
        return self.path.read_text("utf-8", "replace") if self.path.exists() else ""
