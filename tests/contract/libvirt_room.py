"""A private libvirtd in namespaces of its own, with tiny TCG domains written through QEMU itself.

Needs root, libvirtd and qemu. Nothing of the machine's own libvirt is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import libvirt_qemu

libvirt.registerErrorHandler(lambda _context, _error: None, None)

_INIT = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock /run/libvirt
mount --bind $ROOM/var-libvirt /var/lib/libvirt
mount --bind $ROOM/etc-libvirt /etc/libvirt
mount --bind $ROOM/cache-libvirt /var/cache/libvirt
mount --bind $ROOM/log /var/log/libvirt
mount -t sysfs sysfs /sys
ip link set lo up
while :; do
  libvirtd -f $ROOM/etc-libvirt/libvirtd.conf -p $ROOM/libvirtd.pid >>$ROOM/log/libvirtd.out 2>&1 &
  echo $! > $ROOM/libvirtd.pid
  wait $! || true
done
"""

_QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""


class LibvirtRoom:
    """One private libvirtd; ``uri`` for clients, ``path`` for files that QEMU may open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = f"qemu+unix:///system?socket={path}/sock/libvirt-sock"
        for name in ("var-libvirt/qemu", "etc-libvirt", "cache-libvirt", "log", "sock", "disks"):
            (path / name).mkdir(parents=True)
        (path / "scratch").mkdir()
        (path / "etc-libvirt/qemu.conf").write_text(_QEMU_CONF)
        (path / "etc-libvirt/libvirtd.conf").write_text(
            f'unix_sock_dir = "{path}/sock"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'host_uuid = "{uuid.uuid4()}"\nlog_outputs = "3:file:{path}/log/libvirtd.log"\n'
        )
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
             "bash", "-c", _INIT],
            env={**os.environ, "ROOM": str(path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        """Until libvirtd answers."""
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.connection() as connection:
                    connection.getLibVersion()
                return
            except libvirt.libvirtError:
                assert time.monotonic() < deadline, (self.path / "log/libvirtd.out").read_text()
                time.sleep(0.05)

    @contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        connection = libvirt.open(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def restart_libvirtd(self) -> None:
        """SIGKILL; the loop in the namespace starts another."""
        before = self._libvirtd()
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while self._libvirtd() in (0, before):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.wait()

    def _libvirtd(self) -> int:
        """Its pid as seen from here."""
        for proc in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (proc / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0].endswith(b"libvirtd") and str(self.path).encode() in b" ".join(
                arguments
            ):
                return int(proc.name)
        return 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.path, ignore_errors=True)


class TinyVm:
    """A paused TCG domain without an operating system; tests write to its disks through QEMU."""

    def __init__(
        self, room: LibvirtRoom, name: str, sizes_mib: dict[str, int], **options: str
    ) -> None:
        self.room = room
        self.name = name
        self.uuid = str(uuid.uuid4())
        self.sizes_mib = sizes_mib
        for target, size in sizes_mib.items():
            qemu_img("create", "-q", "-f", "qcow2", str(self.disk(target)), f"{size}M")
        disks = "".join(
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
            f"<source file='{self.disk(target)}'/><target dev='{target}' bus='virtio'/>"
            f"<alias name='ua-{target}'/></disk>"
            for target in sizes_mib
        )
        self.xml = (
            f"<domain type='qemu'><name>{name}</name><uuid>{self.uuid}</uuid>"
            f"<memory unit='MiB'>32</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>"
            f"{options.get('extra', '')}"
            f"<devices>{disks}{options.get('devices', '')}"
            f"<serial type='null'/><memballoon model='none'/>"
            f"<video><model type='none'/></video></devices></domain>"
        )
        with room.connection() as connection:
            connection.defineXML(self.xml)
        self.start()

    def disk(self, target: str) -> Path:
        return self.room.path / "disks" / f"{self.name}-{target}.qcow2"

    def start(self) -> None:
        with self.room.connection() as connection:
            connection.lookupByName(self.name).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def io(self, target: str, command: str) -> None:
        """One qemu-io command as if the guest had done it."""
        with self.room.connection() as connection:
            domain = connection.lookupByName(self.name)
            answer = libvirt_qemu.qemuMonitorCommand(
                domain,
                f'qemu-io -d /machine/peripheral/ua-{target}/virtio-backend "{command}"',
                libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
            )
        assert "rror" not in answer, answer

    def write(self, target: str, offset: int, length: int, pattern: int) -> None:
        self.io(target, f"write -P {pattern} {offset} {length}")

    def zero(self, target: str, offset: int, length: int) -> None:
        self.io(target, f"write -z -u {offset} {length}")

    def copy(self, target: str, into: Path) -> Path:
        """The disk's present bytes, read past QEMU (the VM is paused and its writes are through)."""
        self.io(target, "flush")
        qemu_img("convert", "-U", "-O", "raw", str(self.disk(target)), str(into))
        return into

    def kill_qemu(self) -> None:
        """SIGKILL to its QEMU: bitmaps are lost."""
        with self.room.connection() as connection:
            domain = connection.lookupByName(self.name)
            for proc in Path("/proc").glob("[0-9]*"):
                try:
                    line = (proc / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"qemu-system" in line and self.uuid.encode() in line:
                    os.kill(int(proc.name), signal.SIGKILL)
            deadline = time.monotonic() + 20
            while domain.isActive():
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def remove(self) -> None:
        with self.room.connection() as connection:
            domain = connection.lookupByName(self.name)
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )
        for target in self.sizes_mib:
            self.disk(target).unlink()


def qemu_img(*arguments: str) -> str:
    """Run qemu-img; its output."""
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def libvirt_room() -> Iterator[LibvirtRoom]:
    """A room for a test module. Short path: unix sockets allow 107 bytes."""
    room = LibvirtRoom(Path(tempfile.mkdtemp(prefix="vmrlv", dir="/tmp")))
    try:
        yield room
    finally:
        room.stop()
