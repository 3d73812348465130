"""The host of a replica's owner dies: how long until another node acknowledges the next cycle."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import yaml

from bench.context import Bench
from bench.lab import BenchLab, Watcher, wait
from bench.result import Result
from bench.rows.takeover import VM, a_replica
from node.config import LeaseConfig


def measure(bench: Bench) -> list[Result]:
    """``relocation_p50`` and ``relocation_worst``, of the same runs."""
    lab = bench.lab()
    a_replica(lab)
    taken: dict[str, list[float]] = {"killed": [], "silent": []}
    with lab.watching("replication", "primary", VM, 25) as watcher:
        for number in range(bench.runs(20)):
            kind = "silent" if number % 2 else "killed"
            taken[kind].append(_kill_owner(lab, watcher, silent=kind == "silent"))
            bench.say(f"relocation ({kind}): acknowledged elsewhere after {taken[kind][-1]:.2f} s")
    ttl_s = _ttl_s(lab)
    every = tuple(taken["killed"] + taken["silent"])
    what = (
        "the owner's whole host killed: time until the pending cycle (one every 5 s, of a running "
        "guest) is acknowledged by another node, as a delta"
    )
    notes = (
        f"TTL of a node's lease: {ttl_s:g} s",
        "every second host died silently (its cable was pulled first: no FIN, no RST)",
        "etcd and the brokers are on other hosts and unharmed",
    )
    details = {f"{kind}, s": runs for kind, runs in taken.items()}
    commands = ("lab kill OWNER", "lab kill OWNER --silent")
    return [
        Result(
            name="relocation_p50",
            what=f"{what}; budget of the median: granted TTL + 1 s",
            unit="s",
            higher_is_better=False,
            ours=every,
            budget=ttl_s + 1,
            target=1.0,
            commands=commands,
            notes=notes,
            details={**details, "median, s": median(every)},
        ),
        Result(
            name="relocation_worst",
            what=f"{what}; budget of the worst: 2 × granted TTL",
            unit="s",
            higher_is_better=False,
            worst=True,
            ours=every,
            budget=2 * ttl_s,
            target=1.0,
            commands=commands,
            notes=notes,
        ),
    ]


def _kill_owner(lab: BenchLab, watcher: Watcher, *, silent: bool) -> float:
    before = _good(watcher)[-1] if _good(watcher) else {"acked_seq": 0}
    seq = before["acked_seq"]
    wait("a further cycle", lambda: _newest(watcher, "acked_seq") > seq, 60)
    owner = str(_good(watcher)[-1]["node"])
    killed = time.time()
    lab.host(owner).kill(silent=silent)

    def elsewhere() -> dict[str, Any] | None:
        later = [a for a in _good(watcher) if a["acked"] > killed and a["node"] != owner]
        return later[0] if later else None

    answer = wait("an acknowledgement by another node", elsewhere, 90)
    assert answer is not None
    if silent:
        lab.lab.switch.link(lab.lab.settings().host(owner), up=True)
    lab.lab.start(owner)
    wait("the node's return", lambda: owner in _ready(lab), 40, 0.2)
    return float(answer["acked"]) - killed


def _good(watcher: Watcher) -> list[dict[str, Any]]:
    return [answer for answer in watcher.lines() if answer["ok"]]


def _newest(watcher: Watcher, key: str) -> int:
    good = _good(watcher)
    return int(good[-1][key]) if good else 0


def _ready(lab: BenchLab) -> list[str]:
    listed = lab.vmrctl("replica", "node", "list")["items"]
    return [str(item["name"]) for item in listed if item["state"] == "Ready"]


def _ttl_s(lab: BenchLab) -> float:
    """As the lab's nodes are configured."""
    tree = yaml.safe_load((lab.directory / "r1" / "etc-vmreplica" / "node.yaml").read_text())
    return float(tree.get("lease", {}).get("ttl_s", LeaseConfig().ttl_s))
