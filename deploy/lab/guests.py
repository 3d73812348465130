"""Guests of a lab: running, persistent libvirt domains whose consoles prove what their disks hold."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.cgroups import wait_for
from deploy.lab.guest_image import (
    COMMAND_LINE,
    MIB,
    DiskPlan,
    Say,
    domain_type,
    make_disk,
    prepare_boot,
)
from deploy.lab.hosts import BOOT_DIRECTORY, HostControl
from deploy.lab.lifecycle import Lab
from deploy.lab.model import LabError, Role
from deploy.lab.processes import environment

_URI = "qemu:///system"
_NAMESPACE = uuid.UUID("6f1b0a52-6a5e-4c39-9a53-0d7a1f3b7700")
_DISKS = ("vda", "vdb")
_SUFFIXES = {"K": 1 << 10, "M": 1 << 20}


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """How a guest is made."""

    name: str
    sizes_bytes: tuple[int, int]
    fill_bytes: int
    scribble_bytes: int
    ring_slots: int
    seed: int = 1
    rate_bytes_per_s: int = 64 << 10
    period_ms: int = 100
    memory_mib: int = 96

    def disk(self, number: int) -> DiskPlan:
        return DiskPlan(
            number,
            self.sizes_bytes[number],
            self.fill_bytes,
            self.scribble_bytes,
            self.seed,
            self.rate_bytes_per_s,
            self.period_ms,
            self.ring_slots,
        )


def full_plan(name: str) -> GuestPlan:
    """Two disks of 2 GiB with 512 MiB incompressible each; records for 3.6 hours, then a ring."""
    return GuestPlan(name, (2048 * MIB, 2048 * MIB), 512 * MIB, 256 * MIB, 131072)


def small_plan(name: str) -> GuestPlan:
    """Two disks of 64 MiB with 16 MiB incompressible each."""
    return GuestPlan(name, (64 * MIB, 64 * MIB), 16 * MIB, 16 * MIB, 32768)


def prepare(say: Say) -> None:
    """Build what every guest boots; hosts mount it when they start."""
    prepare_boot(say)


class Guest:
    """One guest on one host."""

    def __init__(self, lab: Lab, host: str, name: str) -> None:
        self._lab = lab
        self._control: HostControl = lab.control_named(host)
        self.name = name
        self.console = lab.place.console(host, name)
        self._images = lab.place.host(host) / "images"

    def virsh(self, *words: str, timeout_s: float = 30) -> str:
        """virsh in the host; a host that does not answer is an error, never a hang."""
        argv = ["timeout", f"{timeout_s:g}", "virsh", "-q", "-c", _URI, *words]
        return self._control.call(argv, timeout_s=timeout_s + 5)

    def exists(self) -> bool:
        return self.name in self.virsh("list", "--all", "--name").split()

    def running(self) -> bool:
        return self.name in self.virsh("list", "--name").split()

    def create(self, plan: GuestPlan) -> None:
        """Disks and a persistent definition; no-op when the guest exists."""
        if self.exists():
            return
        for number, target in enumerate(_DISKS):
            make_disk(
                plan.disk(number), self._images / f"{self.name}-{target}.qcow2", self._lab.say
            )
        definition = self._images / f"{self.name}.xml"
        definition.write_text(domain_xml(plan, domain_type(self._lab.say)))
        self.console.parent.mkdir(parents=True, exist_ok=True)
        self.virsh("define", str(definition))

    def start(self, wait: bool = True) -> None:
        """Start it where it does not run; wait for the VERIFY line of this boot."""
        if self.running():
            return
        before = self.console_text().count("VERIFY ")
        self.virsh("start", self.name)
        if not wait:
            return
        end = time.monotonic() + 60
        while self.console_text().count("VERIFY ") <= before:
            if time.monotonic() > end:
                last = self.console_text()[-500:]
                raise LabError(f"guest {self.name} does not boot; its console ends with:\n{last}")
            time.sleep(0.05)
        self._lab.say(f"guest {self.name} runs: {self.verify_lines()[-1]}")

    def stop(self) -> None:
        if self.exists() and self.running():
            self.virsh("destroy", self.name)

    def shutdown(self) -> None:
        self.virsh("shutdown", self.name)

    def remove(self) -> None:
        self.stop()
        if self.exists():
            self.virsh("undefine", self.name, "--checkpoints-metadata")
        for path in self._images.glob(f"{self.name}[-.]*"):
            path.unlink()

    def tell(self, line: str, answer: str, timeout_s: float = 60) -> None:
        """A command to the guest's program, by its second serial port; waits for its answer.

        ``answer`` is the beginning of a console line.
        """
        definition = ElementTree.fromstring(self.virsh("dumpxml", self.name))
        port = definition.find("devices/serial[@type='pty']/source")
        if port is None:
            raise LabError(f"guest {self.name} does not run, or has no second serial port")
        before = self._answers(answer)
        # QEMU reads a pty only while somebody has it open: hold it until the answer is there.
        script = 'exec 3<>"$1"; printf "%s\\n" "$2" >&3; exec cat >/dev/null'
        argv = self._control.inside(["sh", "-c", script, "tell", port.get("path", ""), line])
        with subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment()) as holder:
            try:
                what = f"answer of {self.name} to {line!r}"
                wait_for(lambda: self._answers(answer) > before, timeout_s, what, 0.05)
            finally:
                assert holder.stdin is not None
                holder.stdin.close()

    def _answers(self, beginning: str) -> int:
        return sum(line.startswith(beginning) for line in self.console_text().splitlines())

    def console_text(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def verify_lines(self) -> list[str]:
        return [line for line in self.console_text().splitlines() if line.startswith("VERIFY ")]


def domain_xml(plan: GuestPlan, kind: str) -> str:
    """The definition. Its paths exist on every node host, each with its own /srv/console."""
    identity = uuid.uuid5(_NAMESPACE, plan.name)
    mac = "52:54:00:77:" + ":".join(identity.hex[i : i + 2] for i in (0, 2))
    # A small translation cache: several guests share a small machine.
    features = "<tcg><tb-cache unit='MiB'>32</tb-cache></tcg>" if kind == "qemu" else ""
    disks = "".join(
        f"<disk type='file' device='disk'>"
        f"<driver name='qemu' type='qcow2' cache='none' discard='unmap'/>"
        f"<source file='/srv/images/{plan.name}-{target}.qcow2'/>"
        f"<target dev='{target}' bus='virtio'/></disk>\n"
        for target in _DISKS
    )
    return f"""<domain type='{kind}'>
<name>{plan.name}</name><uuid>{identity}</uuid>
<memory unit='MiB'>{plan.memory_mib}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>
<kernel>{BOOT_DIRECTORY}/vmlinuz</kernel><initrd>{BOOT_DIRECTORY}/initrd.gz</initrd>
<cmdline>{COMMAND_LINE}</cmdline></os>
<features><acpi/>{features}</features><cpu mode='maximum'/>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
<devices>
{disks}<interface type='network'><mac address='{mac}'/><source network='lab'/>
<model type='virtio'/></interface>
<serial type='file'><source path='/srv/console/{plan.name}.log' append='on'/>
<target port='0'/></serial>
<serial type='pty'><target port='1'/></serial>
<memballoon model='none'/><video><model type='none'/></video>
</devices></domain>
"""


def up_guest(lab: Lab, host: str | None = None, name: str = "guest1") -> None:
    """The running guest of `lab up --guest`, on the first primary host."""
    primaries = lab.settings().with_role(Role.PRIMARY)
    if host is None and not primaries:
        raise LabError("no primary host for a guest")
    guest = Guest(lab, host or primaries[0].name, name)
    guest.create(full_plan(name))
    guest.start()


def amount(text: str) -> int:
    """``1048576``, ``64K``, ``1M``."""
    number, factor = text, 1
    if text[-1:].upper() in _SUFFIXES:
        number, factor = text[:-1], _SUFFIXES[text[-1:].upper()]
    if not number.isdigit():
        raise LabError(f"{text!r} is not a number of bytes (suffix K or M)")
    return int(number) * factor


def command(lab: Lab, a: argparse.Namespace) -> None:
    """The verbs of `lab guest`."""
    guest = Guest(lab, a.host, a.name)
    match a.act:
        case "create" | "add":
            with lab.place.locked():
                guest.create(_plan(a))
                if not a.no_start:
                    guest.start()
        case "start":
            guest.start()
        case "stop":
            guest.stop()
        case "shutdown":
            guest.shutdown()
        case "remove":
            guest.remove()
        case "rate":
            guest.tell(f"rate {amount(a.rate)}", "RATE ")
        case "check":
            guest.tell("check", "FILL disk=vdb")
        case _:
            _show_console(guest.console, a.follow)


def _plan(a: argparse.Namespace) -> GuestPlan:
    base = small_plan(a.name) if a.small else full_plan(a.name)
    given = (a.vda_mib, a.vdb_mib)
    sizes = tuple(m * MIB if m else s for m, s in zip(given, base.sizes_bytes, strict=True))
    return GuestPlan(
        name=a.name,
        sizes_bytes=(sizes[0], sizes[1]),
        fill_bytes=a.fill_mib * MIB if a.fill_mib is not None else base.fill_bytes,
        scribble_bytes=base.scribble_bytes,
        ring_slots=base.ring_slots,
        seed=a.seed,
        rate_bytes_per_s=amount(a.rate),
        period_ms=a.period_ms,
        memory_mib=a.memory_mib,
    )


def _show_console(path: Path, follow: bool) -> None:
    if follow:
        os.execvp("tail", ["tail", "-n", "+1", "-F", str(path)])
    if path.exists():
        sys.stdout.write(path.read_text(errors="replace"))
