"""``vmrctl version``: versions of this command and of the server."""

from __future__ import annotations

from importlib import metadata

from vmrctl.errors import Failure
from vmrctl.output import View
from vmrctl.session import Session
from vmrctl.verbs import Verb, with_session

DISTRIBUTION = "vm-replica-broker"
VERSION = View("Version", (), ("client", "server"))
TIMEOUT_S = 10.0


def client_version() -> str:
    """The version of the installed distribution; "unknown" in a tree that is not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def show_version(session: Session) -> None:
    """Show the version of vmrctl and, where an endpoint is known, of the server."""
    result: dict[str, object] = {"client": {"version": client_version()}, "server": None}
    try:
        session.target()
    except Failure as failure:
        if failure.field != "endpoint" or session.options.endpoint:
            raise
        session.show(VERSION, result)
        return
    from vmreplica.v1 import version_pb2 as wire
    from vmreplica.wire.json_shapes import shape

    answer = session.client.read(
        "VersionService/GetVersion",
        wire.GetVersionRequest(),
        wire.GetVersionResponse,
        timeout_s=TIMEOUT_S,
    )
    result["server"] = shape(answer)
    session.show(VERSION, result)


command = Verb(
    "version",
    callback=with_session(show_version),
    help=show_version.__doc__,
    examples=("vmrctl version", "vmrctl version -o json"),
)
