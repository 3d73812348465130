"""What a simulation may do to one host's way to the fake cluster store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class StoreFaults:
    """One host's faults; change the fields at any time, then they hold for what comes next.

    Probabilities are per call, 0 to 1. Durations are true time in ms, (low, high), drawn evenly.
    ``refuse``: connections are refused at once (StoreUnavailable, certainly not applied).
    ``cut``: nothing passes either way; calls wait for their deadline, watches fall silent.
    ``lose_request``, ``lose_reply``: OutcomeUnknown, not applied and applied.
    ``late_apply``: the caller gives up, and *afterwards* the request is applied.
    ``lose_watch_events``: chance that a watch skips one revision (bugs of old etcd versions).
    ``call_timeout_ms``: the deadline of every call but keepalive.
    """

    refuse: bool = False
    cut: bool = False
    lose_request: float = 0.0
    lose_reply: float = 0.0
    late_apply: float = 0.0
    latency_ms: tuple[float, float] = (0.2, 1.0)
    slow: float = 0.0
    slow_ms: tuple[float, float] = (200.0, 1_500.0)
    watch_delay_ms: tuple[float, float] = (0.0, 0.0)
    lose_watch_events: float = 0.0
    call_timeout_ms: float = 2_000.0
    planned: deque[str] = field(default_factory=deque)
    on_change: Callable[[], None] = field(default=lambda: None)
    broken_watches: int = 0
    compacted_watches: int = 0

    def next_write(self, *outcomes: str) -> None:
        """Decide the next writes (transactions), one word each.

        ``ok``, ``refused`` (StoreUnavailable), ``lost_request``, ``lost_reply``, ``late_apply``.
        """
        for outcome in outcomes:
            if outcome not in {"ok", "refused", "lost_request", "lost_reply", "late_apply"}:
                raise ValueError(f"no such outcome: {outcome}")
            self.planned.append(outcome)

    def break_watches(self) -> None:
        """Every watch of this host loses its stream and resumes after a moment."""
        self.broken_watches += 1
        self.on_change()

    def compact_watches(self) -> None:
        """Every watch of this host is told that its revision is compacted."""
        self.compacted_watches += 1
        self.on_change()

    def heal(self) -> None:
        """No fault from here on."""
        self.refuse = self.cut = False
        self.lose_request = self.lose_reply = self.late_apply = 0.0
        self.slow = self.lose_watch_events = 0.0
        self.watch_delay_ms = (0.0, 0.0)
        self.planned.clear()
        self.on_change()
