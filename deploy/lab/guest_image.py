"""What a guest boots and what its disks hold, built once and kept in ``build/cache``.

Kernel, initramfs and command line are the same for every boot and hold no data: whatever a
console shows has come from the disks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from deploy.lab.initramfs import initramfs
from deploy.lab.model import LabError
from deploy.lab.place import CACHE
from deploy.lab.processes import run

COMMAND_LINE = "console=ttyS0 quiet panic=-1 tsc=unstable random.trust_cpu=on"
BOOT = CACHE / "guest"
_KERNEL = CACHE / "kernel"
_SOURCES = Path(__file__).with_name("guest")
_PROBE_TIMEOUT_S = 20
MIB = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk's content; the same plan gives the same bytes."""

    disk: int  # 0 vda, 1 vdb
    size_bytes: int
    fill_bytes: int  # incompressible
    scribble_bytes: int  # where background writes go
    seed: int
    rate_bytes_per_s: int
    period_ms: int
    ring_slots: int

    @property
    def name(self) -> str:
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:16]


@contextmanager
def _cache_lock() -> Iterator[None]:
    """Labs that come up side by side share the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare_boot(say: Say) -> None:
    """Make kernel, initramfs and the disk maker, unless they are there and up to date."""
    with _cache_lock():
        if not (_KERNEL / "vmlinuz").exists():
            raise LabError(f"no guest kernel in {_KERNEL} (see: tools/setup.sh)")
        inputs = [*sorted(_SOURCES.glob("*.[ch]")), *sorted(_KERNEL.iterdir())]
        digest = hashlib.sha256()
        for path in (*inputs, Path(__file__).with_name("initramfs.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        stamp = BOOT / "stamp"
        if stamp.exists() and stamp.read_text() == digest.hexdigest():
            return
        say("building the guest")
        BOOT.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        compiler = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror"]
        for name, flags in (("writer", ["-static"]), ("mkdisk", [])):
            source = str(_SOURCES / f"{name}.c")
            run([*compiler, *flags, "-o", str(BOOT / name), source], timeout_s=120)
        archive = initramfs(BOOT / "writer", list(_KERNEL.glob("*.ko")))
        _put(BOOT / "initrd.gz", archive)
        _put(BOOT / "vmlinuz", (_KERNEL / "vmlinuz").read_bytes())
        (BOOT / "kvm.json").unlink(missing_ok=True)
        stamp.write_text(digest.hexdigest())


def _put(path: Path, content: bytes) -> None:
    """In place of what is there, never half: a running QEMU may have the old file open."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)


def domain_type(say: Say) -> str:
    """``kvm`` where this kernel really boots under it, else ``qemu`` (TCG). Probed once a boot.

    The presence of /dev/kvm says nothing: nested virtualization can hang every guest.
    """
    with _cache_lock():
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        answer_file = BOOT / "kvm.json"
        if answer_file.exists():
            answer = json.loads(answer_file.read_text())
            if answer["boot_id"] == boot_id:
                return str(answer["type"])
        say("probing KVM")
        kind = "kvm" if Path("/dev/kvm").exists() and _boots("kvm") else "qemu"
        answer_file.write_text(json.dumps({"boot_id": boot_id, "type": kind}))
        say(f"guests run as type {kind}")
        return kind


def _boots(accelerator: str) -> bool:
    """Whether the guest's program gets to its first line (it then misses its disks, and halts)."""
    with tempfile.TemporaryDirectory() as directory:
        serial = Path(directory) / "serial"
        argv = ["qemu-system-x86_64", "-M", "q35", "-accel", accelerator, "-cpu", "max"]
        argv += ["-m", "128", "-nodefaults", "-display", "none", "-no-reboot"]
        argv += ["-kernel", str(BOOT / "vmlinuz"), "-initrd", str(BOOT / "initrd.gz")]
        argv += ["-append", COMMAND_LINE, "-serial", f"file:{serial}"]
        try:
            subprocess.run(argv, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return False
        return serial.exists() and b"NO-DISK" in serial.read_bytes()


def make_disk(plan: DiskPlan, target: Path, say: Say) -> None:
    """A fresh qcow2 disk at ``target``, copied (reflinked where possible) from the cache."""
    base = CACHE / "disks" / f"{plan.name}.qcow2"
    with _cache_lock():
        if not base.exists():
            say(f"filling a disk of {plan.size_bytes // MIB} MiB with {plan.fill_bytes // MIB} MiB")
            _build_base(plan, base)
        os.utime(base)
        _forget_old(base.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".new")
    run(["cp", "--reflink=auto", "--sparse=always", str(base), str(temporary)], timeout_s=300)
    temporary.replace(target)


def _build_base(plan: DiskPlan, base: Path) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=base.parent))
    try:
        raw = work / "disk.raw"
        numbers = [
            plan.disk,
            plan.size_bytes,
            plan.fill_bytes,
            plan.scribble_bytes,
            plan.seed,
            plan.rate_bytes_per_s,
            plan.period_ms,
            plan.ring_slots,
        ]
        run([str(BOOT / "mkdisk"), str(raw), *map(str, numbers)], timeout_s=300)
        cooked = work / "disk.qcow2"
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(cooked)])
        cooked.replace(base)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _forget_old(directory: Path, keep: int = 8) -> None:
    files = sorted(directory.glob("*.qcow2"), key=lambda path: path.stat().st_mtime)
    for path in files[:-keep]:
        path.unlink()
