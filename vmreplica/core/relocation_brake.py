"""The brake: when many nodes vanish at once, look twice before moving everything.

It delays, it never forbids: one dead node of two or three is acted upon at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

BRAKED_MOVES_PER_S = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Brake:
    """What the leader remembers. Times on CLOCK_BOOTTIME.

    :ivar vanished: node name → when it was first seen gone. Nodes gone before this leader looked
        for the first time count only while replicas are still named to them.
    :ivar engaged_until_ms: 0 = not engaged.
    :ivar rate_limited: the wait is over, but what is moved now is moved slowly.
    """

    vanished: Mapping[str, int] = field(default_factory=dict)
    engaged_until_ms: int = 0
    rate_limited: bool = False

    def holds(self, now_ms: int) -> bool:
        """Whether replicas of vanished nodes must wait now."""
        return now_ms < self.engaged_until_ms


def step(
    brake: Brake,
    now_ms: int,
    ttl_ms: int,
    registered: Iterable[str],
    live: Iterable[str],
    owing: Iterable[str],
) -> Brake:
    """The brake after one look.

    :param registered: undrained nodes the cluster knows of.
    :param live: nodes with a living process.
    :param owing: nodes that replicas are still named to although they are gone.
    """
    alive = set(live)
    owed = set(owing)
    names = set(registered)
    vanished = {
        name: brake.vanished.get(name, now_ms) for name in (names | owed) - alive if name in owed
    }
    recent = [name for name, since in vanished.items() if now_ms - since <= ttl_ms]
    total = len(names | alive | owed)
    many = len(recent) >= 2 and 3 * len(recent) > total
    if brake.engaged_until_ms or brake.rate_limited:
        if not vanished:
            return Brake()
        if brake.holds(now_ms):
            return replace(brake, vanished=vanished)
        return replace(brake, vanished=vanished, engaged_until_ms=0, rate_limited=True)
    if many:
        return Brake(vanished=vanished, engaged_until_ms=now_ms + ttl_ms)
    return Brake(vanished=vanished)
