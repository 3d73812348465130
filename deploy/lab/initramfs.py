"""The guest's initramfs: a newc cpio archive of one program and the kernel's modules.

Written here rather than by cpio(1), so that the same inputs give the same bytes.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

_DIRECTORY = 0o040755
_EXECUTABLE = 0o100755
_FILE = 0o100644
_CHARACTER_DEVICE = 0o020600


class _Entry(NamedTuple):
    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def _record(entry: _Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (
        inode,
        entry.mode,
        0,
        0,
        1,
        0,
        len(entry.content),
        0,
        0,
        *entry.device,
        len(name),
        0,
    )
    header = b"070701" + b"".join(f"{field:08x}".encode() for field in fields)
    head = header + name
    head += b"\0" * (-len(head) % 4)
    return head + entry.content + b"\0" * (-len(entry.content) % 4)


def initramfs(init: Path, modules: list[Path]) -> bytes:
    """The compressed archive: ``/init``, ``/dev/console`` and ``/mod/*.ko``. Deterministic."""
    entries = [
        _Entry("dev", _DIRECTORY),
        _Entry("dev/console", _CHARACTER_DEVICE, device=(5, 1)),
        _Entry("mod", _DIRECTORY),
        *(_Entry(f"mod/{m.name}", _FILE, m.read_bytes()) for m in sorted(modules)),
        _Entry("init", _EXECUTABLE, init.read_bytes()),
        _Entry("TRAILER!!!", 0),
    ]
    archive = b"".join(_record(entry, number) for number, entry in enumerate(entries, 1))
    return gzip.compress(archive, compresslevel=6, mtime=0)
