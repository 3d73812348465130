"""Randomness and fresh identities, as the only source of either."""

from __future__ import annotations

from typing import Protocol


class Randomness(Protocol):
    """Seeded in simulation, the kernel's in production."""

    def token(self, count: int) -> bytes:
        """``count`` unpredictable bytes."""
        ...

    def uuid(self) -> str:
        """A random UUID (version 4) in canonical lower-case text."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number drawn evenly from [low, high); for jitter."""
        ...
