"""The disks that initial replications are measured with: made once, kept in the cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from bench.lab import run

MIB = 1 << 20
_TREES = ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/lib/python3", "/usr/sbin")
_LARGEST_FILE = 64 * MIB


def random_disk(cache: Path, size_mib: int) -> Path:
    """A qcow2 image full of incompressible bytes."""
    target = cache / f"random-{size_mib}.qcow2"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_made(cache)) as work:
            raw = Path(work) / "disk.raw"
            with raw.open("wb") as file:
                for _ in range(size_mib):
                    file.write(os.urandom(MIB))
            _convert(raw, target)
    return target


def os_disk(cache: Path, size_mib: int) -> Path:
    """A qcow2 image with a file system of programs, libraries and documents of this machine."""
    target = cache / f"os-{size_mib}.qcow2"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_made(cache)) as work:
            tree, raw = Path(work) / "tree", Path(work) / "disk.raw"
            _gather(tree, size_mib * MIB)
            # Journal and inode tables take their share beside the files.
            run(["truncate", "-s", f"{size_mib * 5 // 4 + 64}M", str(raw)])
            line = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(raw)]
            run(line, timeout_s=300)
            _convert(raw, target)
    return target


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _gather(tree: Path, wanted_bytes: int) -> None:
    """Copy files in a fixed order until there are enough."""
    total = 0
    for top in _TREES:
        for directory, below, names in os.walk(top):
            below.sort()
            into = tree / directory.lstrip("/")
            into.mkdir(parents=True, exist_ok=True)
            for name in sorted(names):
                source = Path(directory) / name
                if source.is_symlink() or not source.is_file():
                    continue
                size = source.stat().st_size
                if size > _LARGEST_FILE:
                    continue
                shutil.copyfile(source, into / name)
                total += size
                if total >= wanted_bytes:
                    return


def _convert(raw: Path, target: Path) -> None:
    cooked = raw.with_suffix(".qcow2")
    line = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(cooked)]
    run(line, timeout_s=300)
    cooked.replace(target)
