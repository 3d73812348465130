"""Randomness that repeats: implements ports.randomness.Randomness from a seed."""

from __future__ import annotations

import random
import uuid


class SeededRandomness:
    """The same seed gives the same bytes, identities and jitter."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def token(self, count: int) -> bytes:
        """``count`` bytes."""
        return self._random.randbytes(count)

    def uuid(self) -> str:
        """A version 4 UUID."""
        return str(uuid.UUID(bytes=self._random.randbytes(16), version=4))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return self._random.uniform(low, high)
