"""What is installed."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Of the installed distribution."""
    try:
        return metadata.version("vm-replica-broker")
    except metadata.PackageNotFoundError:
        return "0.1.0"
