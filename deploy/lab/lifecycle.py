"""A whole lab: up, down, and what the verbs do to single hosts."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from deploy.lab.cgroups import Group, hierarchy
from deploy.lab.daemons import Daemons
from deploy.lab.hosts import STORAGE_PATH, HostControl
from deploy.lab.model import Host, LabError, Role, Settings
from deploy.lab.place import CACHE, VENV_BIN, Place
from deploy.lab.processes import namespace_inode, run
from deploy.lab.switch import Cut, Switch, load_cuts, save_cuts

_SHARED_IMAGE_BYTES = 64 << 30  # sparse
# Read after a failure; everything else of a host goes with `down`.
_KEPT = ("log", "console")


class Lab:
    """One lab, up or not."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._group = Group(hierarchy() / f"vmrlab-{place.id}")
        self.switch = Switch(self._group.child("switch"), place.root / "switch.log")
        self._began = time.monotonic()

    def settings(self) -> Settings:
        return Settings.load(self.place.settings_file)

    def control(self, host: Host) -> HostControl:
        return HostControl(self.place, host, self._group.child(host.name), self.switch)

    def control_named(self, name: str) -> HostControl:
        return self.control(self.settings().host(name))

    def daemons(self, settings: Settings, host: Host) -> Daemons:
        return Daemons(self.place, settings, self.control(host))

    def say(self, text: str) -> None:
        """A progress line."""
        print(f"lab {time.monotonic() - self._began:6.2f}s {text}", file=sys.stderr, flush=True)

    # --- the whole -------------------------------------------------------------------------

    def up(self, settings: Settings) -> None:
        """Bring up what is missing. A lab that is up with other settings is refused."""
        from deploy.lab.configuration import write_all  # needs packages that `down` must not

        fresh = not (self.place.settings_file.exists() and self._group.exists())
        if not fresh:
            if self.settings() != settings:
                raise LabError("the lab is up with other settings (see: lab down)")
        else:
            self._clean_files(keep_logs=False)
            self.place.root.mkdir(parents=True, exist_ok=True)
            settings.save(self.place.settings_file)
        write_all(self.place, settings)
        self._group.create()
        self.switch.up()
        self.switch.apply(settings, load_cuts(self.place.faults_file))
        self._start(settings, settings.all_hosts())
        if fresh and settings.daemons and not settings.closed:
            self._open(settings)

    def _open(self, settings: Settings) -> None:
        """Let every sender with a certificate of the lab put replicas into the cluster."""
        clients = [*settings.with_role(Role.CLIENT), *settings.with_role(Role.PRIMARY)]
        if not clients or not settings.with_role(Role.BROKER):
            return
        words = ["settings", "set", "any_server=true", f"default_storage_location={STORAGE_PATH}"]
        context = ["env", f"VMRCTL_CONFIG={self.place.contexts_file}", str(VENV_BIN / "vmrctl")]
        self.control(clients[0]).call([*context, "--context", "replica", *words], timeout_s=60)
        self.say("any server may send to the replica cluster")

    def _start(self, settings: Settings, hosts: list[Host]) -> None:
        shared = self._shared_storage(settings)
        boot = str(CACHE / "guest") if (CACHE / "guest").exists() else ""
        controls = [self.control(host) for host in hosts]
        for control in controls:
            control.start(settings, shared, boot)
        for control in controls:
            control.plug()
        for control in controls:
            control.wait_ready()
        self.say(f"hosts up: {' '.join(host.name for host in hosts)}")
        daemons = [self.daemons(settings, host) for host in hosts]
        etcd = [d for d in daemons if "etcd" in d.wanted()]
        for each in etcd:
            each.start("etcd")
        libvirt = [d for d in daemons if d.control.host.has_libvirt]
        self._together("libvirtd answers", [partial(d.wait_ready, "libvirtd") for d in libvirt])
        # A member that comes back alone has no quorum to be healthy in.
        waiting = etcd if self._etcd_quorum(settings) else []
        self._together("etcd healthy", [partial(d.wait_ready, "etcd") for d in waiting])
        self._start_product(daemons)

    def _etcd_quorum(self, settings: Settings) -> bool:
        members = settings.with_role(Role.ETCD)
        alive = [m for m in members if self.control(m).state() == "running"]
        return len(alive) > len(members) // 2

    def _start_product(self, daemons: list[Daemons]) -> None:
        pairs = [(d, name) for d in daemons for name in d.wanted() if name != "etcd"]
        for each, name in pairs:
            each.start(name)
        waits = [partial(d.wait_ready, name) for d, name in pairs]
        self._together("daemons ready", waits)

    def _together(self, what: str, waits: Sequence[Callable[[], None]]) -> None:
        if not waits:
            return
        with ThreadPoolExecutor(len(waits)) as pool:
            for future in [pool.submit(wait) for wait in waits]:
                future.result()
        self.say(what)

    def _shared_storage(self, settings: Settings) -> str:
        """What the replica nodes mount: a directory, or a loop device with XFS (reflink)."""
        if not settings.xfs:
            self.place.shared.mkdir(exist_ok=True)
            return str(self.place.shared)
        image = self.place.shared_image
        devices = loop_devices(self.place)
        if devices:
            return devices[0]
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(_SHARED_IMAGE_BYTES)
            run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)])
        return run(["losetup", "--find", "--show", str(image)]).stdout.strip()

    def down(self, keep_data: bool = False, purge: bool = False) -> None:
        """Remove every process, namespace, mount, control group and loop device of the lab.

        Needs no state but the control groups, so it also cleans up after a crash.
        """
        for child in self._group.children():
            child.kill()
        for child in self._group.children():
            if not child.wait_empty(10):
                raise LabError(f"processes {child.pids()} do not die")
        if self._group.exists():
            self._group.remove()
        for device in loop_devices(self.place):
            run(["losetup", "-d", device], check=False)
        self.place.settings_file.unlink(missing_ok=True)
        self.place.faults_file.unlink(missing_ok=True)
        if purge:
            shutil.rmtree(self.place.root, ignore_errors=True)
        elif not keep_data:
            self._clean_files(keep_logs=True)

    def _clean_files(self, *, keep_logs: bool) -> None:
        root = self.place.root
        if not root.exists():
            return
        for path in root.iterdir():
            if path.name in (".lock", "certs", "vmrctl.yaml"):
                continue
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
                continue
            if keep_logs and (path / "console").is_dir():
                # Consoles of test VMs, which the node keeps in its own directory.
                for log in path.glob("var-lib-vmreplica/console/*.log"):
                    log.replace(path / "console" / log.name)
            for part in path.iterdir():
                if not (keep_logs and part.name in _KEPT and path != self.place.shared):
                    _remove(part)
            if not any(path.iterdir()):
                path.rmdir()

    # --- single hosts ----------------------------------------------------------------------

    def start(self, name: str) -> None:
        """A host that was killed, up again with the disks it had."""
        settings = self.settings()
        self._start(settings, [settings.host(name)])

    def change_cuts(self, change: Callable[[list[Cut]], list[Cut]]) -> None:
        settings = self.settings()
        cuts = change(load_cuts(self.place.faults_file))
        self.switch.apply(settings, cuts)
        save_cuts(self.place.faults_file, cuts)

    def heal(self) -> None:
        """No cut, no pulled cable, no rate limit (the firewall of `up` stays)."""
        self.change_cuts(lambda _: [])
        for host in self.settings().all_hosts():
            if self.control(host).init_pid() is not None:
                self.switch.link(host, up=True)
                self.switch.rate(host, None)

    def status(self) -> list[dict[str, Any]]:
        settings = self.settings()
        return [self._host_status(settings, host) for host in settings.all_hosts()]

    def _host_status(self, settings: Settings, host: Host) -> dict[str, Any]:
        control, daemons = self.control(host), self.daemons(settings, host)
        pid = control.init_pid()
        inodes = {
            f"{name}ns": namespace_inode(pid, kind) if pid else None
            for name, kind in (("net", "net"), ("mnt", "mnt"), ("pid", "pid"))
        }
        return {
            "name": host.name,
            "roles": list(host.roles),
            "address": host.address,
            "pid": pid,
            "netns": inodes["netns"],
            "mntns": inodes["mntns"],
            "pidns": inodes["pidns"],
            "libvirtd_pid": daemons.pid("libvirtd") if pid and host.has_libvirt else None,
            "state": control.state(),
            "daemons": {name: daemons.pid(name) for name in daemons.wanted()} if pid else {},
        }


def loop_devices(place: Place) -> list[str]:
    """Loop devices that hold this lab's shared image."""
    if not place.shared_image.exists():
        return []
    listing = run(["losetup", "-j", str(place.shared_image)]).stdout
    return [line.split(":")[0] for line in listing.splitlines()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
