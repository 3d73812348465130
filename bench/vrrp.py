"""keepalived moving an address between two hosts of the lab: the peer of the broker's takeover."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab import CLIENT, PYTHON, BenchFailed, BenchLab, run, wait
from deploy.lab.processes import command_line

ADDRESS = "10.77.0.101"
PORT = 7999
HOSTS = ("b1", "b2")
_RESPONDER = (
    "import socket,sys\n"
    "s=socket.create_server(('',{port}))\n"
    "while True:\n"
    "    c,_=s.accept()\n"
    "    c.sendall(b'{host}\\n')\n"
    "    c.close()\n"
)


def configuration(host: str, interval_s: float) -> str:
    """VRRP version 3 allows intervals below a second; nothing else is changed."""
    priority = 100 - HOSTS.index(host)
    return f"""\
global_defs {{
  router_id {host}
  vrrp_version 3
  vrrp_garp_master_delay 0
}}
vrrp_instance cap {{
  state BACKUP
  nopreempt
  interface eth0
  virtual_router_id 77
  priority {priority}
  advert_int {interval_s:g}
  virtual_ipaddress {{ {ADDRESS}/24 }}
}}
"""


@dataclass(slots=True)
class Vrrp:
    """Two keepalived processes, each with a program that answers on the address."""

    lab: BenchLab
    interval_s: float
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Both hosts; waits for the address to answer."""
        for host in HOSTS:
            self._start(host)

    def close(self) -> None:
        """All ended, the address removed."""
        for host in HOSTS:
            self.kill(host)
        for child in self._children:
            child.wait(timeout=10)
        self._children.clear()

    def kill(self, host: str) -> float:
        """SIGKILL to what answers on a host, and to its keepalived; when (wall clock seconds)."""
        pids = [
            pid
            for pid in self.lab.host(host).group.pids()
            if _is_ours(command_line(pid)) or _is_responder(command_line(pid))
        ]
        now = time.time()
        if pids:
            subprocess.run(["kill", "-9", *map(str, pids)], check=False, capture_output=True)
        return now

    def restart(self, host: str) -> None:
        """Bring a killed one back as a standby: what it left on the interface goes first."""
        line = self.lab.inside(host, "ip", "address", "del", f"{ADDRESS}/24", "dev", "eth0")
        subprocess.run(line, capture_output=True, check=False)
        self._start(host)

    def holder(self) -> str:
        """Who answers."""
        script = f"exec 3<>/dev/tcp/{ADDRESS}/{PORT} && head -1 <&3"
        try:
            return run(self.lab.inside(CLIENT, "timeout", "1", "bash", "-c", script)).strip()
        except BenchFailed:
            return ""

    def _start(self, host: str) -> None:
        config = Path(self.lab.directory) / f"keepalived-{host}.conf"
        config.write_text(configuration(host, self.interval_s))
        config.chmod(0o644)
        words = ["keepalived", "--dont-fork", "--log-console", "--vrrp", "-f", str(config)]
        words += ["-p", "/run/ka.pid", "-r", "/run/ka-vrrp.pid"]
        subprocess.run(
            self.lab.inside(host, "rm", "-f", "/run/ka.pid", "/run/ka-vrrp.pid"), check=False
        )
        self._spawn(host, words, "keepalived")
        program = _RESPONDER.format(port=PORT, host=host)
        self._spawn(host, [PYTHON, "-c", program], "responder")

    def _spawn(self, host: str, words: list[str], name: str) -> None:
        log = self.lab.directory / f"{name}-{host}.log"
        with log.open("ab") as out:
            line = self.lab.inside(host, *words)
            child = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self._children.append(child)

    def wait_holder(self, not_host: str = "") -> str:
        """Until somebody (else) answers."""

        def found() -> str:
            holder = self.holder()
            return holder if holder != not_host else ""

        return wait("the VRRP address", found, 20)


def _is_ours(words: list[str]) -> bool:
    return bool(words) and Path(words[0]).name == "keepalived"


def _is_responder(words: list[str]) -> bool:
    return len(words) > 2 and words[1] == "-c" and f"create_server(('',{PORT}))" in words[2]
