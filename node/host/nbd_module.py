"""Finds libnbd's Python module, which only distributions ship."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from vmreplica.core.problems import Problem, Reason

_DISTRIBUTION = Path("/usr/lib/python3/dist-packages")


def load_nbd() -> ModuleType:
    """The ``nbd`` module: of this environment, else the distribution's.

    The distribution's whole directory must not be put on the path: it would shadow ours.

    :raises Problem: BAD_CONFIG with the package to install.
    """
    try:
        return importlib.import_module("nbd")
    except ModuleNotFoundError:
        pass
    for name, pattern in (("libnbdmod", "libnbdmod.*.so"), ("nbd", "nbd.py")):
        for file in sorted(_DISTRIBUTION.glob(pattern)):
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except ImportError:
                del sys.modules[name]
                continue
            break
    found = sys.modules.get("nbd")
    if found is None:
        raise Problem(
            Reason.BAD_CONFIG,
            "libnbd's Python module is missing, without it no disk can be read",
            field="python3-libnbd",
            remedy="apt-get install python3-libnbd (of the Python version the node runs on)",
        )
    return found
