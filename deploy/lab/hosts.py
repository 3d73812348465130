"""One host's life: started, running, paused, killed, gone."""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path

from deploy.lab.cgroups import Group, wait_for
from deploy.lab.model import CAP_ADDRESS, CAP_ALIAS, CAP_NAME, Host, LabError, Role, Settings
from deploy.lab.place import Place, tail
from deploy.lab.processes import (
    command_line,
    entering,
    inner_pids,
    joining,
    parent,
    run,
    spawn,
)
from deploy.lab.switch import Switch

_INIT = Path(__file__).with_name("hostinit.sh")
BOOT_DIRECTORY = "/srv/boot"
STORAGE_PATH = "/srv/replicas"
SCRATCH_PATH = "/srv/scratch"

_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
_NETWORKS = {"lab": "labbr0", "vmr-test": "vmrt0"}


class HostControl:
    """Acts on one host of a lab."""

    def __init__(self, place: Place, host: Host, group: Group, switch: Switch) -> None:
        self.host = host
        self.group = group
        self._place = place
        self._switch = switch

    def init_pid(self) -> int | None:
        """The host's pid 1, seen from outside; None when the host is down."""
        for pid in self.group.pids():
            inner = inner_pids(pid)
            if len(inner) > 1 and inner[-1] == 1:
                return pid
        return None

    def state(self) -> str:
        """running, paused or down."""
        if self.init_pid() is None:
            return "down"
        return "paused" if self.group.frozen() else "running"

    def need_running(self) -> int:
        """The init pid of a running host; LabError says what else it is."""
        state, pid = self.state(), self.init_pid()
        if state != "running" or pid is None:
            raise LabError(f"host {self.host.name} is {state}")
        return pid

    def start(self, settings: Settings, shared: str, boot: str) -> None:
        """Bring the host up with the disks it had; no-op when it is up. Does not wait."""
        if self.init_pid() is not None:
            return
        self.group.create()
        self.group.kill()
        self.group.wait_empty(5)
        self.group.freeze(False)  # it may have died while it was paused
        self._prepare_files(settings)
        directory = self._place.host(self.host)
        variables = {
            "LAB_HOST": self.host.name,
            "LAB_ADDRESS": self.host.address,
            "LAB_HOST_DIR": str(directory),
            "LAB_SHARED": shared if self.host.has(Role.NODE) else "",
            "LAB_BOOT": boot,
            "LAB_LIBVIRT": "1" if self.host.has_libvirt else "",
        }
        unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork"]
        command = [*unshare, "--mount-proc", "--kill-child", "bash", str(_INIT)]
        given = [f"{name}={value}" for name, value in variables.items()]
        spawn(joining(self.group, ["env", *given, *command]), self._place.log(self.host, "init"))

    def plug(self) -> None:
        """Give a host that just started its cable; its init waits for it."""
        wait_for(self._in_own_network, 10, f"namespaces of {self.host.name}")
        pid = self.init_pid()
        if pid is None:
            raise self.failure("its init died")
        if not Path(f"/proc/{pid}/root/run/lab/ready").exists():
            self._switch.plug(self.host, pid)

    def _in_own_network(self) -> bool:
        pid = self.init_pid()
        return pid is not None and command_line(pid)[:1] == ["bash"]

    def wait_ready(self, timeout_s: float = 20) -> None:
        """Until init has mounted, addressed and (where wanted) started libvirtd."""
        end = time.monotonic() + timeout_s
        while True:
            pid = self.init_pid()
            if pid is None:
                raise self.failure("its init died")
            if Path(f"/proc/{pid}/root/run/lab/ready").exists():
                return
            if time.monotonic() > end:
                raise self.failure(f"not ready within {timeout_s:g} s")
            time.sleep(0.01)

    def failure(self, what: str) -> LabError:
        """A problem with the host's last words."""
        words = tail(self._place.log(self.host, "init"))
        return LabError(f"host {self.host.name}: {what}\n{words}")

    def kill(self, silent: bool = False) -> list[int]:
        """SIGKILL to pid 1, so to everything in the host. Returns the pids that died.

        ``silent``: the cable is pulled first, so that peers get no FIN and no RST.
        """
        victims = self.group.pids()
        pid = self.init_pid()
        if pid is None:
            return []
        if silent:
            self._switch.link(self.host, up=False)
        run(["kill", "-9", str(pid)], check=False)
        if self.group.frozen():
            self.group.kill()  # the frozen unshare outside would never see its child's end
        if not self.group.wait_empty(3):  # a stopped nsenter outside holds the last zombie
            self.group.kill()
            if not self.group.wait_empty(5):
                raise LabError(f"host {self.host.name}: {self.group.pids()} do not die")
        return victims

    def pause(self) -> None:
        self.need_running()
        self.group.freeze(True)

    def resume(self) -> None:
        if self.state() == "paused":
            self.group.freeze(False)

    def inside(self, argv: list[str], directory: str = "/") -> list[str]:
        """The command line that runs ``argv`` in the host."""
        return joining(self.group, entering(self.need_running(), argv, directory))

    def call(self, argv: list[str], *, timeout_s: float = 30, check: bool = True) -> str:
        """Run in the host and wait; standard output."""
        title = f"{self.host.name}: {' '.join(argv)}"
        return run(self.inside(argv), timeout_s=timeout_s, check=check, title=title).stdout

    def process(self, *names: str) -> int | None:
        """The outermost process in the host whose program (or script) has one of the names."""
        found = {}
        for pid in self.group.pids():
            words = [Path(word).name for word in command_line(pid)[:2]]
            if len(inner_pids(pid)) > 1 and any(name in words for name in names):
                found[pid] = parent(pid)
        outermost = [pid for pid, above in found.items() if above not in found]
        return min(outermost) if outermost else None

    def _prepare_files(self, settings: Settings) -> None:
        directory = self._place.host(self.host)
        (directory / "log").mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", f"{CAP_ADDRESS} {CAP_NAME} {CAP_ALIAS}"]
        lines += [f"{host.address} {host.fqdn} {host.name}" for host in settings.all_hosts()]
        (directory / "hosts").write_text("\n".join(lines) + "\n")
        if self.host.has_libvirt:
            _libvirt_files(directory / "etc-libvirt")


def _libvirt_files(target: Path) -> None:
    if (target / "qemu.conf").exists():
        return
    target.mkdir(parents=True)
    for name in ("libvirt.conf", "nwfilter", "virtlogd.conf"):
        source = Path("/etc/libvirt") / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copy(source, target / name)
    networks = target / "qemu" / "networks"
    (networks / "autostart").mkdir(parents=True)
    (target / "hooks").mkdir()
    for name, bridge in _NETWORKS.items():
        # Isolated and without addresses: needs no dnsmasq.
        definition = networks / f"{name}.xml"
        definition.write_text(
            f"<network><name>{name}</name><uuid>{uuid.uuid4()}</uuid>"
            f"<bridge name='{bridge}' stp='off' delay='0'/></network>\n"
        )
        link = networks / "autostart" / f"{name}.xml"
        link.symlink_to(f"/etc/libvirt/qemu/networks/{name}.xml")
    (target / "qemu.conf").write_text(_QEMU_CONF)
    (target / "libvirtd.conf").write_text(
        f'auth_unix_rw = "none"\nauth_unix_ro = "none"\nhost_uuid = "{uuid.uuid4()}"\n'
    )
