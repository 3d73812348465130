"""How long an address did not answer, as a watcher saw it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

Answers = Sequence[dict[str, Any]]


def since_kill(answers: Answers, killed: float) -> float | None:
    """Seconds from the kill to the first good answer that was asked after the last failure.

    None while the outage has not been seen, or lasts. Answers asked before the kill do not count.
    """
    later = [a for a in answers if a["asked"] > killed]
    failures = [place for place, a in enumerate(later) if not a["ok"]]
    if not failures:
        return None
    for answer in later[failures[0] :]:
        if answer["ok"]:
            return float(answer["answered"]) - killed
    return None


def longest_gap(answers: Answers, since: float, until: float) -> float:
    """The longest time between two good answers, about an interval, in seconds."""
    good = [float(a["answered"]) for a in answers if a["ok"]]
    before = [t for t in good if t < since]
    times = [*before[-1:], *[t for t in good if since <= t <= until]]
    return max((b - a for a, b in itertools.pairwise(times)), default=until - since)
