"""The main job, step by step, on real hosts of the lab with a running guest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from console import Console
from lab import LAB_DIR, CommandFailed, Hands, answers
from report import Report
from timeline import Timeline

PRIMARY = "primary"
REPLICA = "replica"
VM = "guest1"
RELAYED_VM = "guest2"
FREQUENCY = "5s"
NODES = ("r1", "r2", "r3")


class StoryFailed(Exception):
    """A sentence of the story did not come true."""


class Story:
    """Holds what one step learns and a later one needs."""

    def __init__(self, hands: Hands, timeline: Timeline, report: Report, cap: str) -> None:
        self.hands = hands
        self.timeline = timeline
        self.report = report
        self.cap = cap
        self.replica_id = ""
        self.console = Console(LAB_DIR / "p1" / "console" / f"{VM}.log")
        self.watch_file = LAB_DIR / "observed-replication.jsonl"
        self.locate_file = LAB_DIR / "observed-locate.jsonl"
        self.cycles: dict[int, dict[str, Any]] = {}

    # -- helpers

    def watched(self) -> list[dict[str, Any]]:
        """Good answers of the replication observer; also collects the cycles seen."""
        good = [a for a in answers(self.watch_file) if a["ok"]]
        for answer in good:
            cycle = answer["cycle"]
            if cycle["seq"]:
                self.cycles[cycle["seq"]] = cycle | {"node": answer["node"]}
        return good

    def wait(self, what: str, ready: Callable[[], Any], timeout_s: float) -> Any:
        """Poll until ``ready`` answers something true."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            found = ready()
            if found:
                return found
            time.sleep(0.1)
        raise StoryFailed(f"{what}: not within {timeout_s:.0f} s")

    def acked(self) -> dict[str, Any]:
        """The newest answer about the replication."""
        seen = self.watched()
        return seen[-1] if seen else {"acked_seq": 0, "node": "", "epoch": 0, "acked_time": 0.0}

    def wait_cycles(self, more: int, timeout_s: float) -> dict[str, Any]:
        """Wait until ``more`` further cycles are acknowledged."""
        goal = self.acked()["acked_seq"] + more
        self.wait(f"cycle {goal}", lambda: self.acked()["acked_seq"] >= goal, timeout_s)
        return self.acked()

    # -- the steps

    def enable(self) -> None:
        """1. Admission, placement with reasons, the replica VM is defined and refuses to start."""
        self.hands.vmrctl(
            REPLICA, "settings", "set", "any_server=true", "default_storage_location=/srv/replicas"
        )
        started = time.monotonic()
        answer = self.hands.vmrctl(
            PRIMARY,
            "replication",
            "enable",
            VM,
            "--to",
            self.cap,
            "--frequency",
            FREQUENCY,
            "--start",
            "later",
            "--wait",
        )
        self.replica_id = str(answer.get("replica_id") or answer["replication"]["replica_id"])
        replica = self.hands.vmrctl(REPLICA, "replica", "show", VM)
        owner = replica["owner"]
        self.report["owner_before"] = owner
        self.timeline.note(
            "admitted and placed", (time.monotonic() - started) * 1000, f"on {owner}"
        )
        for reason in replica["placement"]["reasons"]:
            self.timeline.say(f"      {reason}")
        self.wait("replica VM defined", lambda: self._defined_on(owner), 30)
        refused = self.hands.lab("shell", owner, "--", "virsh", "start", VM, check=False)
        if self._running_on(owner):
            raise StoryFailed(f"the replica VM could be started on {owner}: {refused}")
        self.timeline.note("replica VM defined, off; virsh start is refused", None, owner)

    def _defined_on(self, host: str) -> bool:
        listed = self.hands.lab(
            "shell", host, "--", "virsh", "list", "--all", "--name", check=False
        )
        return VM in listed.split()

    def _running_on(self, host: str) -> bool:
        return VM in self.hands.lab("shell", host, "--", "virsh", "list", "--name").split()

    def initial(self) -> None:
        """2a. Initial replication with a progress bar, watched by another process."""
        self.hands.observe("replication", PRIMARY, VM, self.watch_file, 150)
        self.hands.vmrctl(PRIMARY, "replication", "start", VM)
        self.wait("the first answer", self.watched, 20)
        until = time.monotonic() + 180
        shown = -1
        while self.acked()["acked_seq"] < 1:
            if time.monotonic() > until:
                raise StoryFailed(f"initial replication did not end: {self.acked()}")
            now = self.acked()
            tenth = now["done_bytes"] * 10 // max(1, now["total_bytes"])
            if tenth != shown and now["total_bytes"]:
                shown = tenth
                self.timeline.bar("initial", now["done_bytes"], now["total_bytes"])
            time.sleep(0.15)
        self.watched()
        first = self.cycles.get(1) or self._as_observed()
        seconds = max(0.001, first["acked"] - first["begin"])
        speed = first["changed_bytes"] / seconds / 1e6
        asked = len([a for a in answers(self.watch_file) if a["ok"]])
        self.report["initial_mb_per_s"] = round(speed, 1)
        self.report["progress_answers"] = asked
        self.timeline.note(
            "initial replication acknowledged",
            seconds * 1000,
            f"{first['changed_bytes'] / 1e6:,.0f} MB at {speed:,.0f} MB/s, "
            f"{first['wire_bytes'] / 1e6:,.0f} MB on the wire",
        )

    def _as_observed(self) -> dict[str, Any]:
        """The first cycle where the next one followed before an observer looked again."""
        seen = self.watched()
        done = next(a for a in seen if a["acked_seq"] >= 1)
        begun = next((a for a in seen if a["total_bytes"]), seen[0])
        size = done["total_bytes"]
        return {
            "begin": begun["asked"],
            "acked": done["answered"],
            "changed_bytes": size,
            "wire_bytes": size,
        }

    def deltas(self) -> None:
        """2b. Delta cycles while the guest keeps writing."""
        now = self.wait_cycles(3, 60)
        recent = [c for c in self.cycles.values() if c["kind"].endswith("DELTA")]
        on_wire = sum(c["wire_bytes"] for c in recent)
        self.timeline.note(
            "three deltas acknowledged",
            recent[-1]["latency_ms"],
            f"cycle {now['acked_seq']}, {on_wire / len(recent) / 1024:,.0f} KiB each on the wire",
        )

    def owner_dies(self) -> None:
        """3. SIGKILL to the owner's host; the next cycle is acknowledged elsewhere, as a delta."""
        before = self.acked()
        owner = before["node"]
        self.report["owner_before"] = owner
        self.report["epoch_before"] = before["epoch"]
        self.report.killed(self.hands.pid_of(owner))
        killed = time.time()
        self.hands.lab("kill", owner)
        self.timeline.say(f"   SIGKILL to the init of {owner}: libvirt, node and all are gone")

        def elsewhere() -> dict[str, Any] | None:
            self.watched()
            later = [c for c in self.cycles.values() if c["acked"] > killed and c["node"] != owner]
            return min(later, key=lambda c: c["seq"]) if later else None

        cycle = self.wait("an acknowledgement by another node", elsewhere, 60)
        after = self.acked()
        took = (cycle["acked"] - killed) * 1000
        kind = cycle["kind"].removeprefix("CYCLE_KIND_").capitalize()
        self.report["owner_after"] = after["node"]
        self.report["epoch_after"] = after["epoch"]
        self.report["cycle_kind_after"] = kind
        self.report["relocation_ms"] = round(took)
        self.timeline.note(
            "relocated; next cycle acknowledged",
            took,
            f"{owner} → {after['node']}, epoch {before['epoch']} → {after['epoch']}, {kind}",
        )
        if kind != "Delta" or after["node"] == owner or after["epoch"] <= before["epoch"]:
            raise StoryFailed(f"not a delta by a new owner: {cycle}, {after}")

    def leader_dies(self) -> None:
        """4. SIGKILL to the leading broker; the next one holds the address and answers."""
        self.hands.observe("locate", REPLICA, self.replica_id, self.locate_file, 50)
        self.wait("a first Locate", lambda: [a for a in answers(self.locate_file) if a["ok"]], 20)
        leader = self._leader()
        self.report.killed(int(self.hands.lab("daemon", leader, "pid", "broker")))
        killed = time.time()
        self.hands.lab("daemon", leader, "kill", "broker")

        def answered() -> dict[str, Any] | None:
            good = [a for a in answers(self.locate_file) if a["ok"] and a["asked"] > killed]
            bad = [a for a in answers(self.locate_file) if not a["ok"] and a["asked"] > killed - 1]
            good = [a for a in good if not bad or a["asked"] > bad[0]["asked"]]
            return good[0] if good and (bad or time.time() - killed > 10) else None

        first = self.wait("Locate at the address", answered, 60)
        took = (first["answered"] - killed) * 1000
        successor = self.wait("a new leader", lambda: self._leader(other_than=leader), 20)
        self.report["broker_takeover_ms"] = round(took)
        self.timeline.note("next leader holds the address", took, f"{leader} → {successor}")
        self.wait_cycles(1, 40)
        self.timeline.note("cycles go on", None, f"cycle {self.acked()['acked_seq']}")

    def _leader(self, other_than: str = "") -> str:
        listed = self.hands.try_vmrctl(REPLICA, "broker", "list") or {"items": []}
        leaders = [b["name"] for b in listed["items"] if b["leader"] and b["name"] != other_than]
        return leaders[0] if leaders else ""

    def relayed(self) -> None:
        """5. A second VM replicates through the broker, its way to the nodes cut."""
        for node in NODES:
            self.hands.lab("cut", "p1", node)
        started = time.monotonic()
        self.hands.vmrctl(
            PRIMARY,
            "replication",
            "enable",
            RELAYED_VM,
            "--to",
            self.cap,
            "--frequency",
            FREQUENCY,
            "--route",
            "relay",
        )

        def replicated() -> dict[str, Any] | None:
            seen = self.hands.try_vmrctl(PRIMARY, "replication", "show", RELAYED_VM)
            return seen if seen and seen["acked_seq"] >= 2 else None

        seen = self.wait("two relayed cycles", replicated, 90)
        self.timeline.note(
            "second VM replicated through relay",
            (time.monotonic() - started) * 1000,
            f"route {seen['route']}, cycle {seen['acked_seq']}",
        )
        self.hands.lab("heal")

    def test_failover(self) -> None:
        """6. The newest point boots; its console proves every record on both disks."""
        self.wait_cycles(1, 60)
        started = time.monotonic()
        self.hands.vmrctl(REPLICA, "failover", "test", "start", VM, "--wait")
        listed = self.hands.vmrctl(REPLICA, "failover", "test", "list")["items"]
        test = next(item for item in listed if item["replica_id"] == self.replica_id)
        self.watched()
        cycle = self.cycles[test["seq"]]
        expected = self.console.last_count(before=cycle["begin"])
        log = LAB_DIR / test["node"] / "var-lib-vmreplica" / "console" / f"{self.replica_id}.log"
        console = Console(log).start()
        try:
            verified = self.wait("VERIFY of the failover VM", lambda: console.verified, 120)[0]
            self.report["console_log"] = console.text()
        finally:
            console.stop()
        seen = min(verified.last_vda, verified.last_vdb)
        self.report["counter_at_last_ack"] = expected
        self.report["counter_in_failover_vm"] = seen
        self.timeline.note(
            f"{test['domain_name']} boots and verifies",
            (time.monotonic() - started) * 1000,
            f"cycle {test['seq']}: the copy holds {seen}, the guest was past {expected}",
        )
        self._judge(expected, verified)
        self.hands.vmrctl(REPLICA, "failover", "test", "stop", VM, "--wait")
        self.timeline.note("test failover stopped and cleaned up")

    def _judge(self, expected: int, verified: Any) -> None:
        if verified.bad or min(verified.last_vda, verified.last_vdb) < expected:
            raise StoryFailed(f"the copy lacks records: expected ≥ {expected}, {verified}")
        if verified.last_vda - verified.last_vdb not in (0, 1):
            raise StoryFailed(f"the two disks are of different times: {verified}")
        if self.console.nonces and verified.nonce not in self.console.nonces:
            raise StoryFailed(f"another guest booted: {verified.nonce}")
        if self.console.errors:
            raise StoryFailed(f"the guest met errors: {self.console.errors[:3]}")

    def sum_up(self) -> None:
        """Totals for the report."""
        self.watched()
        deltas = [c for c in self.cycles.values() if c["kind"].endswith("DELTA")]
        self.report["delta_bytes_on_wire"] = sum(c["wire_bytes"] for c in deltas)
        self.report["cycles_acked"] = self.acked()["acked_seq"]


__all__ = ["CommandFailed", "Story", "StoryFailed"]
