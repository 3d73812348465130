"""Who leads among the broker candidates, and until when a candidate may act."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """An election key as the store holds it. The lowest create revision leads."""

    key: str
    create_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one candidate stands: it leads, or it waits for ``before`` to go."""

    present: bool
    leads: bool
    before: str = ""
    leader: str = ""


def leader_of(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate that came first; None where there is none.

    A key is leased, and revisions only rise: who leads once leads as long as its key exists.
    """
    return min(candidates, key=lambda c: c.create_revision, default=None)


def standing(mine: Candidate | None, candidates: Iterable[Candidate]) -> Standing:
    """Where ``mine`` stands among the keys of one linearizable read.

    A key under my name with another create revision is not mine: somebody deleted and re-made it.
    """
    ordered = sorted(candidates, key=lambda c: c.create_revision)
    leader = ordered[0].key if ordered else ""
    if mine is None:
        return Standing(False, False, "", leader)
    place = next(
        (
            i
            for i, c in enumerate(ordered)
            if c.key == mine.key and c.create_revision == mine.create_revision
        ),
        None,
    )
    if place is None:
        return Standing(False, False, "", leader)
    before = ordered[place - 1].key if place else ""
    return Standing(True, place == 0, before, leader)


def may_act(now_boottime_ms: int, deadline_boottime_ms: int) -> bool:
    """Whether a lease's holder may still act: strictly before its deadline."""
    return now_boottime_ms < deadline_boottime_ms
