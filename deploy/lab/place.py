"""Where a lab keeps its files, and the lock that lets one command at a time change it."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.model import Host, LabError

CHECKOUT = Path(__file__).resolve().parents[2]
VENV_BIN = CHECKOUT / ".venv" / "bin"
CACHE = CHECKOUT / "build" / "cache"
# A host mounts something of its own over each of these.
_FORBIDDEN = ("/run", "/srv", "/etc", "/var/lib", "/proc", "/sys")


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of one lab (``LAB_DIR``, default ``build/lab``)."""

    root: Path

    @staticmethod
    def from_environment() -> Place:
        root = Path(os.environ.get("LAB_DIR") or CHECKOUT / "build" / "lab").absolute()
        if any(root.is_relative_to(forbidden) for forbidden in _FORBIDDEN):
            raise LabError(f"LAB_DIR={root}: hosts mount their own over {' '.join(_FORBIDDEN)}")
        if any(character.isspace() or character in ",:" for character in str(root)):
            raise LabError(f"LAB_DIR={root}: no blanks, commas or colons, please")
        return Place(root)

    @property
    def id(self) -> str:
        """Tells labs apart in the machine-wide cgroup tree."""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:8]

    @property
    def settings_file(self) -> Path:
        return self.root / "lab.json"

    @property
    def faults_file(self) -> Path:
        return self.root / "faults.json"

    @property
    def certificates(self) -> Path:
        return self.root / "certs"

    @property
    def contexts_file(self) -> Path:
        return self.root / "vmrctl.yaml"

    @property
    def shared(self) -> Path:
        """The replica nodes' shared directory, seen by them as /srv/replicas."""
        return self.root / "shared"

    @property
    def shared_image(self) -> Path:
        """Its XFS image, where the lab was brought up with ``--xfs``."""
        return self.root / "shared.xfs"

    def host(self, host: Host | str) -> Path:
        return self.root / (host if isinstance(host, str) else host.name)

    def log(self, host: Host, daemon: str) -> Path:
        return self.host(host) / "log" / f"{daemon}.log"

    def console(self, host: Host | str, domain: str) -> Path:
        """What the serial port of ``domain`` said on ``host``, over all boots there."""
        return self.host(host) / "console" / f"{domain}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one changing command at a time; others wait."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, indented; "" when there is none."""
    if not path.exists():
        return ""
    text = path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text)
