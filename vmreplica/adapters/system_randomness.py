"""The kernel's randomness: the only module that may draw from it."""

from __future__ import annotations

import os
import random
import uuid


class SystemRandomness:
    """Implements ports.randomness.Randomness."""

    def token(self, count: int) -> bytes:
        """``count`` unpredictable bytes."""
        return os.urandom(count)

    def uuid(self) -> str:
        """A random UUID."""
        return str(uuid.uuid4())

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return random.uniform(low, high)  # noqa: S311 - jitter, not a secret
