"""The libvirt hook that refuses to start primaries which must not run here: installed and proven."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import libvirt

from node.host.libvirt_connection import LibvirtConnection
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.randomness import Randomness

log = logging.getLogger(__name__)
HOOK_NAME = "50-vmreplica"
PROOF_REASON = "this start only proves that the hook works"
DEFAULT_LIST = "/var/lib/vmreplica/held"


class HookInstaller:
    """Installs ``hooks/qemu.d/50-vmreplica`` and keeps the list of VMs it refuses.

    :param script: the hook as shipped.
    :param held_file: the one file that the hook reads: lines ``UUID reason``.
    :param libvirtd_pid_file: whose process gets SIGHUP, so that a first hook is seen at all.
    """

    def __init__(
        self,
        connection: LibvirtConnection,
        randomness: Randomness,
        *,
        script: Path,
        hooks_dir: Path = Path("/etc/libvirt/hooks"),
        held_file: Path = Path(DEFAULT_LIST),
        libvirtd_pid_file: Path = Path("/run/libvirtd.pid"),
    ) -> None:
        self._connection = connection
        self._randomness = randomness
        self._script = script
        self._hooks_dir = hooks_dir
        self._held_file = held_file
        self._libvirtd_pid_file = libvirtd_pid_file

    async def install(self) -> bool:
        """Install or renew the hook, and prove it by a start that must fail.

        :returns: whether anything had to be written.
        :raises Problem: STATE_REFUSES: libvirt does not heed the hook.
        """
        changed = await asyncio.to_thread(self._write_hook)
        if changed:
            await asyncio.to_thread(self._hang_up)
        for _ in range(20):
            if await self.proven():
                return changed
            await asyncio.sleep(0.1)  # noqa: TID251 - real libvirtd needs real time to reread
        raise Problem(
            Reason.STATE_REFUSES,
            "libvirt does not heed the start hook",
            field="hooks",
            value=str(self._hooks_dir / "qemu.d" / HOOK_NAME),
            remedy="Restart libvirtd and look at its log; then restart the node agent",
        )

    async def proven(self) -> bool:
        """Whether the hook refuses a VM that is on the list."""
        uuid = self._randomness.uuid()
        await self.hold(uuid, PROOF_REASON)
        try:
            return await self._connection.run(lambda c: _is_refused(c, uuid), again=False)
        finally:
            await self.let_go(uuid)

    async def hold(self, vm_uuid: str, reason: str) -> None:
        """From now on this VM cannot be started on this host."""
        held = await asyncio.to_thread(self._read)
        held[vm_uuid] = " ".join(reason.split())
        await asyncio.to_thread(self._write, held)

    async def let_go(self, vm_uuid: str) -> None:
        """This VM may be started again. Idempotent."""
        held = await asyncio.to_thread(self._read)
        if held.pop(vm_uuid, None) is not None:
            await asyncio.to_thread(self._write, held)

    async def held(self) -> dict[str, str]:
        """UUID → reason of all VMs that are refused."""
        return await asyncio.to_thread(self._read)

    def _write_hook(self) -> bool:
        text = self._script.read_text().replace(DEFAULT_LIST, str(self._held_file))
        target = self._hooks_dir / "qemu.d" / HOOK_NAME
        if target.exists() and target.read_text() == text and os.access(target, os.X_OK):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, text, 0o755)
        return True

    def _hang_up(self) -> None:
        try:
            pid = int(self._libvirtd_pid_file.read_text())
            os.kill(pid, signal.SIGHUP)
        except (OSError, ValueError) as error:
            log.warning("libvirtd got no SIGHUP: %s", error)

    def _read(self) -> dict[str, str]:
        if not self._held_file.exists():
            return {}
        pairs = (line.split(maxsplit=1) for line in self._held_file.read_text().splitlines())
        return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs if pair}

    def _write(self, held: dict[str, str]) -> None:
        self._held_file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{uuid} {reason}\n" for uuid, reason in sorted(held.items()))
        _replace(self._held_file, text, 0o644)


def _is_refused(connection: Any, uuid: str) -> bool:
    xml = (
        f"<domain type='qemu'><name>vmreplica-hook-proof-{uuid[:8]}</name><uuid>{uuid}</uuid>"
        "<memory unit='MiB'>16</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>"
        "</domain>"
    )
    try:
        started = connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
    except libvirt.libvirtError as error:
        return error.get_error_code() == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED and (
            PROOF_REASON in str(error)
        )
    started.destroy()
    return False


def _replace(path: Path, text: str, mode: int) -> None:
    """Write durably under another name and rename over: the hook never reads half a list."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".vmreplica-", delete=False) as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
        os.fchmod(f.fileno(), mode)
    Path(f.name).replace(path)
