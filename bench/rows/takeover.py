"""The leading broker dies: how long until Locate answers again at the client access point."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import yaml

from bench.context import Bench
from bench.lab import CAP, BenchFailed, BenchLab, Watcher, wait
from bench.outage import longest_gap, since_kill
from bench.result import Result, Tried
from bench.vrrp import ADDRESS, HOSTS, PORT, Vrrp, configuration
from broker.config import ElectionConfig
from deploy.lab.guests import Guest, small_plan

VM = "bench-small"
_INTERVALS_S = (1.0, 0.5, 0.2)
_CLEAN_BUDGET_S = 0.3
_ABOUT_THE_CLIENT = (
    "a client asks every 10 ms with a deadline of 0.3 s, and connects anew after each failure"
)
_ABOUT_KEEPALIVED = (
    "keepalived is shown at its default interval of 1 s; with shorter ones it is faster, as "
    "listed. It asks nobody: two halves of a cut network both take the address, and a process that "
    "was paused goes on holding it. The broker waits for its lease to end, so that at most one leads"
)

_PEER_LINES = (
    "keepalived --dont-fork --vrrp -f FILE, on two hosts, with",
    *configuration(HOSTS[0], _INTERVALS_S[0]).splitlines(),
)


@dataclass(slots=True)
class _Peer:
    """What keepalived did."""

    runs: list[float] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def measure(bench: Bench) -> list[Result]:
    """``takeover`` (kill -9) and ``takeover_clean`` (SIGTERM)."""
    lab = bench.lab()
    replica_id = a_replica(lab)
    killed, clean = [], []
    with lab.watching("locate", "replica", replica_id, 10) as watcher:
        wait("Locate", lambda: [a for a in watcher.lines()[-5:] if a["ok"]], 20)
        for _ in range(bench.runs(20)):
            killed.append(_kill_leader(lab, watcher))
            bench.say(f"takeover: Locate answers again after {killed[-1]:.2f} s")
        for _ in range(bench.runs(10)):
            clean.append(_stop_leader(lab, watcher))
            bench.say(f"takeover_clean: without an answer for {clean[-1]:.3f} s")
    peer = _keepalived(bench, lab)
    ttl_s = _ttl_s(lab)
    return [
        _killed(killed, ttl_s, peer),
        Result(
            name="takeover_clean",
            what="leading broker stopped cleanly (SIGTERM): the longest time between two answers "
            "of Locate at the client access point",
            unit="s",
            higher_is_better=False,
            worst=True,
            ours=tuple(clean),
            budget=_CLEAN_BUDGET_S,
            target=1.0,
            commands=("lab daemon LEADER stop broker",),
            notes=(_ABOUT_THE_CLIENT,),
        ),
    ]


def _killed(killed: list[float], ttl_s: float, peer: _Peer) -> Result:
    return Result(
        name="takeover",
        what="leading broker killed (SIGKILL): time until Locate answers at the client access "
        "point; budget: granted TTL + 1 s",
        unit="s",
        higher_is_better=False,
        worst=True,
        ours=tuple(killed),
        peer=tuple(peer.runs),
        peer_name="keepalived",
        budget=ttl_s + 1,
        target=1.0,
        commands=("lab daemon LEADER kill broker", *_PEER_LINES),
        tried=tuple(peer.tried),
        notes=(
            f"TTL of the election lease: {ttl_s:g} s",
            _ABOUT_THE_CLIENT,
            _ABOUT_KEEPALIVED,
            *peer.notes,
        ),
    )


def a_replica(lab: BenchLab) -> str:
    """A small running guest, replicated; its replica id."""
    guest = Guest(lab.lab, "p1", VM)
    guest.create(small_plan(VM))
    guest.start()
    # The second time it is there already, and the command changes nothing.
    words = ("--to", CAP, "--frequency", "5s", "--wait")
    lab.vmrctl("primary", "replication", "enable", VM, *words)
    return str(lab.vmrctl("primary", "replication", "show", VM)["replica_id"])


def _leader(lab: BenchLab) -> str:
    listed = lab.vmrctl("replica", "broker", "list")["items"]
    return next((str(item["name"]) for item in listed if item["leader"]), "")


def _kill_leader(lab: BenchLab, watcher: Watcher) -> float:
    leader = wait("a leader", lambda: _leader(lab), 20)
    daemons = lab.lab.daemons(lab.lab.settings(), lab.lab.settings().host(leader))
    killed = time.time()
    daemons.kill("broker")
    took = _outage(watcher, "Locate", killed)
    daemons.start("broker")
    daemons.wait_ready("broker")
    return took


def _outage(watcher: Watcher, what: str, killed: float) -> float:
    took = wait(what, lambda: since_kill(watcher.lines(), killed), 60)
    assert took is not None
    return took


def _stop_leader(lab: BenchLab, watcher: Watcher) -> float:
    leader = wait("a leader", lambda: _leader(lab), 20)
    daemons = lab.lab.daemons(lab.lab.settings(), lab.lab.settings().host(leader))
    stopped = time.time()
    daemons.stop("broker")
    until = max(time.time(), stopped + 1) + 0.5
    time.sleep(max(0.0, until - time.time()))
    gap = longest_gap(watcher.lines(), stopped, until)
    daemons.start("broker")
    daemons.wait_ready("broker")
    return gap


def _ttl_s(lab: BenchLab) -> float:
    """As the lab's brokers are configured."""
    tree = yaml.safe_load((lab.directory / "b1" / "etc-vmreplica" / "broker.yaml").read_text())
    return float(tree.get("election", {}).get("ttl_s", ElectionConfig().ttl_s))


def _keepalived(bench: Bench, lab: BenchLab) -> _Peer:
    """Runs at the default interval; how shorter ones do; the configuration."""
    found = _Peer()
    for interval_s in _INTERVALS_S:
        setting = f"advert_int {interval_s:g}"
        vrrp = Vrrp(lab, interval_s)
        vrrp.start()
        try:
            vrrp.wait_holder()
            taken = _fail_over(vrrp, bench.runs(7 if interval_s == 1 else 3, 2))
        except BenchFailed as failed:
            # On a busy machine short intervals make both take the address, again and again.
            found.notes.append(f"keepalived, {setting}: no clear takeover was seen ({failed})")
            bench.say(found.notes[-1])
            continue
        finally:
            vrrp.close()
        found.tried.append(Tried(f"{setting}, worst", max(taken)))
        if interval_s == 1:
            found.runs = taken
        bench.say(f"takeover: keepalived, {setting}: {', '.join(f'{t:.2f}' for t in taken)} s")
    return found


def _fail_over(vrrp: Vrrp, count: int) -> list[float]:
    taken = []
    with vrrp.lab.watching("tcp", "replica", f"{ADDRESS}:{PORT}", 10) as watcher:
        for _ in range(count):
            holder = vrrp.wait_holder()
            time.sleep(3.5 * vrrp.interval_s)  # the standby has heard the holder
            killed = vrrp.kill(holder)
            took = _outage(watcher, "the VRRP address", killed)
            taken.append(took)
            vrrp.restart(holder)
    return taken
