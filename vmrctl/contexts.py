"""Where to connect and as whom: flags, environment, the context file, root's local socket.

Each value is taken from the first place that has it: a flag, a context named by ``--context``, the
environment, the current context. Without any endpoint, root talks to the daemon of this host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmrctl.errors import EXIT_USAGE, Failure, usage

DEFAULT_PORT = 7443
SOCKET_DIR = Path("/run/vmreplica")
SOCKETS = ("broker.sock", "node.sock")
_KEYS = ("endpoint", "ca", "certificate", "key")
_REMEDY = (
    "Name one with --endpoint HOST:PORT, VMRCTL_ENDPOINT or a context in "
    "~/.config/vmrctl/config.yaml; as root on a host of the cluster none is needed."
)


@dataclass(frozen=True, slots=True)
class Context:
    """One entry of the context file; "" where a value is not given."""

    endpoint: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class ContextFile:
    """The context file. ``current`` is "" when none is chosen."""

    path: Path
    current: str
    contexts: dict[str, Context]


@dataclass(frozen=True, slots=True)
class Target:
    """A resolved endpoint: ``HOST:PORT`` with TLS files, or ``unix:/path`` without."""

    endpoint: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether this is a socket on this host."""
        return self.endpoint.startswith("unix:")


def config_path(environ: Mapping[str, str]) -> Path:
    """The context file in force, whether or not it exists."""
    if environ.get("VMRCTL_CONFIG"):
        return Path(environ["VMRCTL_CONFIG"]).expanduser()
    home = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "vmrctl" / "config.yaml"


def load(path: Path) -> ContextFile:
    """Read the context file; one that is not there is empty.

    :raises Failure: BAD_CONFIG with all faults, each as ``file:key: sentence``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ContextFile(path, "", {})
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_config(path, [f"{path}:: cannot be read: {error}."]) from error
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise _bad_config(path, [f"{path}:: is not YAML: {where}."]) from error
    faults: list[str] = []
    found = _parse(path, {} if data is None else data, faults)
    if faults:
        raise _bad_config(path, [f"{path}:{fault}" for fault in faults])
    return found


def resolve(
    *,
    endpoint: str | None,
    context: str | None,
    environ: Mapping[str, str],
    is_root: bool | None = None,
    socket_dir: Path = SOCKET_DIR,
) -> Target:
    """Decide where to connect. :raises Failure: when nothing fits, saying what is missing."""
    if endpoint and endpoint.startswith("unix:"):
        return Target(endpoint)
    chosen, named = _chosen(context, environ)
    from_environment = Context(
        *(environ.get(f"VMRCTL_{key.upper()}", "") for key in _KEYS),
    )
    order = [chosen, from_environment] if named else [from_environment, chosen]
    values = {key: next((v for c in order if (v := getattr(c, key))), "") for key in _KEYS}
    address = endpoint or values["endpoint"]
    if not address:
        root = os.geteuid() == 0 if is_root is None else is_root
        return _local(socket_dir, root)
    if address.startswith("unix:"):
        return Target(address)
    missing = [key for key in _KEYS[1:] if not values[key]]
    if missing:
        raise usage(
            f"To reach {address}, vmrctl needs a client certificate: {', '.join(missing)} missing.",
            field=missing[0],
            remedy="Set " + ", ".join(f"VMRCTL_{key.upper()}" for key in missing)
            + ", or write them into the context.",
        )  # fmt: skip
    files = {key: Path(values[key]).expanduser() for key in _KEYS[1:]}
    return Target(with_port(address), files["ca"], files["certificate"], files["key"])


def with_port(address: str) -> str:
    """``HOST[:PORT]`` with the port filled in. :raises Failure: when it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or (address.count(":") > 1 and not address.startswith("[")):
        host, port = address, str(DEFAULT_PORT)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    elif address.endswith("]"):
        host, port = address, str(DEFAULT_PORT)
    good_port = port.isascii() and port.isdigit() and 0 < int(port) < 65_536
    if not host or not good_port or any(c.isspace() or c == "/" for c in host):
        raise usage(
            f"{address!r} is not HOST:PORT.",
            field="endpoint",
            value=address,
            remedy="Write a name or an address, a colon and a port, such as replica.example:7443.",
        )
    return f"{host}:{port}"


def _chosen(context: str | None, environ: Mapping[str, str]) -> tuple[Context, bool]:
    file = load(config_path(environ))
    name = context or environ.get("VMRCTL_CONTEXT") or file.current
    if not name:
        return Context(), False
    if name not in file.contexts:
        known = ", ".join(sorted(file.contexts)) or "none"
        raise usage(
            f"There is no context {name!r} in {file.path}.",
            field="context",
            value=name,
            remedy=f"Known contexts: {known}.",
        )
    return file.contexts[name], bool(context)


def _local(socket_dir: Path, is_root: bool) -> Target:
    if is_root:
        for name in SOCKETS:
            if (socket_dir / name).exists():
                return Target(f"unix:{socket_dir / name}")
    raise usage("No endpoint is known.", field="endpoint", remedy=_REMEDY)


def _parse(path: Path, data: Any, faults: list[str]) -> ContextFile:
    if not isinstance(data, dict):
        faults.append(": must be a mapping with the keys current and contexts.")
        return ContextFile(path, "", {})
    faults += [
        f"{key}: is not a key of this file (current, contexts)."
        for key in data
        if key not in ("current", "contexts")
    ]
    raw = data.get("contexts") or {}
    if not isinstance(raw, dict):
        faults.append("contexts: must be a mapping from names to contexts.")
        raw = {}
    contexts = {str(name): _context(path, str(name), entry, faults) for name, entry in raw.items()}
    current = data.get("current") or ""
    if not isinstance(current, str):
        faults.append("current: must be the name of a context.")
        current = ""
    elif current and current not in contexts:
        faults.append(f"current: names {current!r}, which is not among the contexts.")
    return ContextFile(path, current, contexts)


def _context(path: Path, name: str, entry: Any, faults: list[str]) -> Context:
    if not isinstance(entry, dict):
        faults.append(f"contexts.{name}: must be a mapping with {', '.join(_KEYS)}.")
        return Context()
    values: dict[str, str] = {}
    for key, value in entry.items():
        if key not in _KEYS:
            faults.append(f"contexts.{name}.{key}: is not a key of a context ({', '.join(_KEYS)}).")
        elif not isinstance(value, str):
            faults.append(f"contexts.{name}.{key}: must be text.")
        elif key == "endpoint":
            values[key] = value
        else:
            values[key] = str(path.parent / Path(value).expanduser())
    return Context(**values)


def _bad_config(path: Path, lines: list[str]) -> Failure:
    return Failure(
        "BAD_CONFIG",
        "\n".join(lines),
        exit_code=EXIT_USAGE,
        grpc_code="INVALID_ARGUMENT",
        field=str(path),
        remedy="Correct the file, or name another with VMRCTL_CONFIG.",
    )
