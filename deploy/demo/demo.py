"""``make demo``: a running VM is replicated through the broker's address, and its owner may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from types import FrameType

from lab import CommandFailed, Hands
from report import ROOT, Report
from story import RELAYED_VM, VM, Story, StoryFailed
from timeline import Timeline

_CAP = os.environ.get("DEMO_CAP", "cap.lab:7443")


class Interrupted(Exception):
    """Ctrl-C or a termination request."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted


def _require_root() -> None:
    if os.geteuid() == 0:
        return
    print("make demo needs root: it makes network namespaces and runs libvirt in them.")
    print("Next: sudo make demo")
    sys.exit(2)


def _raise_lab(hands: Hands, timeline: Timeline, report: Report) -> None:
    timeline.step(0, "The lab: one primary host, three nodes, three brokers, three etcd members")
    started = time.monotonic()
    hands.lab("up", "--firewall", "--guest", timeout_s=240)
    hands.lab("guest", "rate", "p1", VM, "1M")
    hands.lab("guest", "create", "p1", RELAYED_VM, "--small", timeout_s=240)
    report["hosts"] = hands.status()
    timeline.note(
        "hosts, clusters and guests are up",
        (time.monotonic() - started) * 1000,
        f"{len(report['hosts'])} hosts, each with namespaces of its own",
    )


def _tell(hands: Hands, timeline: Timeline, report: Report) -> None:
    story = Story(hands, timeline, report, _CAP)
    story.console.start()
    try:
        story.wait("the guest counts", lambda: story.console.last_count() > 0, 90)
        timeline.note("guest1 boots and counts", None, f"at {story.console.last_count()}")
        for number, (text, act) in enumerate(
            (
                (f"Enable replication of {VM} to {_CAP}", (story.enable,)),
                ("Initial replication, then deltas every 5 s", (story.initial, story.deltas)),
                ("The owner's whole host is killed", (story.owner_dies,)),
                ("The leading broker is killed", (story.leader_dies,)),
                ("A second VM through relay, its way to the nodes cut", (story.relayed,)),
                ("Test failover of the newest point", (story.test_failover,)),
            ),
            start=1,
        ):
            timeline.step(number, text)
            for part in act:
                part()
        story.sum_up()
    finally:
        story.console.stop()


def _clean_up(hands: Hands, timeline: Timeline) -> bool:
    hands.stop_children()
    if os.environ.get("KEEP") == "1":
        timeline.say("KEEP=1: the lab stays up; deploy/lab/lab status, deploy/lab/lab down")
        return True
    timeline.step(7, "Clean up")
    started = time.monotonic()
    try:
        hands.lab("down", timeout_s=120)
    except (CommandFailed, subprocess.TimeoutExpired) as error:
        timeline.say(f"   the lab did not come down: {error}")
        return False
    timeline.note("everything removed", (time.monotonic() - started) * 1000)
    return True


def main() -> int:
    """Run the story; always clean up; say ``demo: ok`` last, or why not."""
    _require_root()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    timeline = Timeline()
    seed = int(os.environ.get("SEED", "1"))
    report = Report(ROOT / "build" / "demo" / "report.json", seed)
    hands = Hands()
    code, verdict = 1, ""
    try:
        _raise_lab(hands, timeline, report)
        _tell(hands, timeline, report)
        code, verdict = 0, "demo: ok"
    except Interrupted:
        code, verdict = 130, "demo: interrupted"
    except (StoryFailed, CommandFailed, subprocess.TimeoutExpired) as error:
        verdict = f"demo: failed: {error}"
    except Exception:  # noqa: BLE001 - a bug of the demo must still clean up, and be seen
        traceback.print_exc()
        verdict = "demo: failed by a bug of its own"
    finally:
        cleaned = _clean_up(hands, timeline)
        if not cleaned and code == 0:
            code, verdict = 1, "demo: failed: the lab did not come down"
        report["ok"] = code == 0
        report.save()
    timeline.table()
    print(verdict, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
