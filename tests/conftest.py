"""What this machine can do, printed before the tests; tests that need more are skipped aloud."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

CAPABILITIES: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "netns": lambda: os.geteuid() == 0 and Path("/proc/self/ns/net").exists(),
    "etcd": lambda: _command("etcd") and _command("etcdctl"),
    "libvirt": lambda: _command("libvirtd") and find_spec("libvirt") is not None,
    "qemu": lambda: _command("qemu-system-x86_64") and _command("qemu-img"),
    "nbd": lambda: find_spec("nbd") is not None,
    "nbdkit": lambda: _command("nbdkit"),
    "nodejs": lambda: _command("node") and _command("npm"),
    "zsh": lambda: _command("zsh"),
    "strace": lambda: _command("strace"),
    "xfs": lambda: _command("mkfs.xfs"),
    "guest": lambda: _built("build/cache/kernel/vmlinuz"),
}


def _command(name: str) -> bool:
    return shutil.which(name) is not None


def _built(name: str) -> bool:
    return (Path(__file__).parent.parent / name).is_file()


@cache
def has(capability: str) -> bool:
    """Whether this machine has a capability; other names are commands on the PATH."""
    probe = CAPABILITIES.get(capability)
    return probe() if probe else _command(capability)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "needs(*capabilities): skip where one is missing")


def pytest_report_header() -> list[str]:
    """One line that says what is here and what is not."""
    here = [name for name in CAPABILITIES if has(name)]
    missing = [name for name in CAPABILITIES if not has(name)]
    python = ".".join(str(part) for part in sys.version_info[:3])
    lines = [f"machine: {os.cpu_count()} cores, Python {python}, has {' '.join(here)}"]
    return lines + ([f"machine: LACKS {' '.join(missing)}"] if missing else [])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip with a sentence where something is missing."""
    for marker in item.iter_markers("needs"):
        missing = [name for name in marker.args if not has(name)]
        if missing:
            pytest.skip(f"this machine lacks {', '.join(missing)} (tools/setup.sh installs it)")
