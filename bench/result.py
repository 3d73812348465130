"""What one row of the benchmark found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Tried:
    """One setting of a peer that was tried before the measured runs, and how it did."""

    setting: str
    value: float


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table.

    :param higher_is_better: a speed; else a time.
    :param ours: one number a run, in ``unit``; ``peer`` likewise, in the same order (pairs).
    :param worst: the runs are summed up by their worst, not by their median.
    :param target: the least ratio. A ratio above 1 is better than the peer.
    :param budget: where there is no peer to beat: the number, in ``unit``, to stay within;
        the ratio is against it.
    :param tried: how the peer was tuned.
    """

    name: str
    what: str
    unit: str
    higher_is_better: bool
    ours: tuple[float, ...]
    target: float
    peer: tuple[float, ...] = ()
    peer_name: str = ""
    worst: bool = False
    budget: float | None = None
    commands: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ours_value(self) -> float:
        """All our runs in one number."""
        return self._sum_up(self.ours)

    @property
    def peer_value(self) -> float | None:
        """All the peer's runs in one number."""
        return self._sum_up(self.peer) if self.peer else None

    @property
    def ratio(self) -> float:
        """Above 1: better than the peer, or within the budget."""
        against = self.budget if self.budget is not None else self.peer_value
        assert against is not None, f"{self.name} has neither a peer nor a budget"
        if self.higher_is_better:
            return self.ours_value / against
        return against / self.ours_value if self.ours_value else float("inf")

    @property
    def met(self) -> bool:
        """Whether the target is reached. Nothing is rounded in our favour."""
        return self.ratio >= self.target

    def pair_ratios(self) -> list[float]:
        """The ratio within each pair of runs, where runs were paired."""
        if len(self.ours) != len(self.peer):
            return []
        pairs = zip(self.ours, self.peer, strict=True)
        return [a / b if self.higher_is_better else b / a for a, b in pairs if a and b]

    def _sum_up(self, runs: Sequence[float]) -> float:
        if not self.worst:
            return median(runs)
        return min(runs) if self.higher_is_better else max(runs)
