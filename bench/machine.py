"""The machine a run was made on, and the versions of what took part."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PROGRAMS = {
    "qemu": ["qemu-system-x86_64", "--version"],
    "libvirt": ["libvirtd", "--version"],
    "nbdcopy": ["nbdcopy", "--version"],
    "nbdkit": ["nbdkit", "--version"],
    "nginx": ["nginx", "-v"],
    "haproxy": ["haproxy", "-v"],
    "keepalived": ["keepalived", "--version"],
    "etcd": ["etcd", "--version"],
}
_PACKAGES = ("vm-replica-broker", "grpcio", "protobuf", "zstandard", "blake3")
_NUMBER = re.compile(r"\d+\.\d+[\w.+-]*")


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts for the head of a report."""

    facts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def look(root: Path) -> Machine:
        """Ask this machine. The load is that of the minute before the run."""
        memory_kib = int(_first(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()) or 0)
        processor = _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        facts = {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "commit": _commit(root),
            "machine": f"{os.cpu_count()} cores, {processor or platform.machine()}, "
            f"{memory_kib / 2**20:.0f} GiB",
            "system": f"{_system()}, kernel {platform.release()}",
            "load average before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        }
        return Machine(facts, _versions())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    for name, command in _PROGRAMS.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            found[name] = _first(f"({_NUMBER.pattern})", done.stdout + done.stderr) or "unknown"
        except FileNotFoundError:
            found[name] = "not installed"
    return found


def _system() -> str:
    return _first(r'PRETTY_NAME="(.+)"', Path("/etc/os-release").read_text()) or platform.system()


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1).strip() if found else ""
