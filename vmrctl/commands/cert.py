"""``vmrctl cert``: make and check certificates, without a server."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vmrctl import contexts
from vmrctl.errors import EXIT_FAULTS_FOUND, usage
from vmrctl.output import Column, View
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmreplica.adapters import certificates
from vmreplica.adapters.system_clock import SystemClock

command = Noun("cert", help="Make and check certificates.")
CHECK = View(
    "Check",
    (
        Column("CHECK", "name"),
        Column("OK", "ok"),
        Column("DETAIL", "detail"),
        Column("NEXT", "remedy"),
    ),
    ("name", "ok", "detail", "remedy"),
)
_SCHEME = "spiffe://"


@verb(command, "ca", "vmrctl cert ca /etc/vmreplica/ca")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", default="vmreplica", show_default=True, help="A name for people.")
@click.option(
    "--days",
    type=click.IntRange(1),
    default=certificates.CA_DAYS,
    show_default=True,
    help="How long it holds.",
)
def make_authority(session: Session, directory: Path, name: str, days: int) -> None:
    """Make a certificate authority: DIR/ca.pem and DIR/ca.key.

    One that exists is left as it is. Keep ca.key on one safe machine.
    """
    existed = (directory / certificates.CA_CERTIFICATE).exists()
    path = certificates.create_ca(directory, name, SystemClock().wall_ms(), days=days)
    result = {"certificate": str(path), "changed": not existed}
    sentence = f"{path} was there already." if existed else f"{path} is the new authority."
    session.done(result, sentence)


@verb(
    command,
    "issue",
    "vmrctl cert issue --ca /etc/vmreplica/ca --san r1.example --san replica.example r1",
    "vmrctl cert issue --ca /etc/vmreplica/ca --san b1.example --role site2/broker/b1 b1",
    "vmrctl cert issue --ca /etc/vmreplica/ca --role site2/administrator/anna anna",
)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--ca",
    "ca",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The directory that 'cert ca' made.",
)
@click.option(
    "--san",
    "sans",
    multiple=True,
    metavar="NAME",
    help="A DNS name or IP address; may be repeated. A host needs its own name and its CAP's.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="CLUSTER/KIND/NAME",
    help="broker, node, administrator, viewer or operator/GROUP in a cluster.",
)
@click.option(
    "--days",
    type=click.IntRange(1),
    default=certificates.DAYS,
    show_default=True,
    help="How long it holds.",
)
@click.option("--force", is_flag=True, help="Replace OUT.pem and OUT.key if they exist.")
def issue(
    session: Session,
    out: Path,
    ca: Path,
    sans: tuple[str, ...],
    roles: tuple[str, ...],
    days: int,
    force: bool,
) -> None:
    """Issue a certificate: OUT.pem and OUT.key, which only its owner can read."""
    if not force:
        _check_free(out)
    names = [*sans, *(_role_uri(role) for role in roles)]
    if not names:
        raise usage(
            "A certificate needs a name or a role.",
            field="--san",
            remedy="Add --san HOST, --role CLUSTER/KIND/NAME, or both.",
        )
    issued = certificates.issue(ca, out, names, SystemClock().wall_ms(), days=days)
    result = {"certificate": str(issued.certificate), "key": str(issued.key), "sans": names}
    session.done(result, f"{issued.certificate} and {issued.key} are written.")


@verb(
    command,
    "verify",
    "vmrctl cert verify r1.pem --ca ca.pem",
    "vmrctl cert verify r1.pem --against replica.example:7443",
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--ca",
    "ca",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The authority that peers trust (ca.pem beside FILE, or the context's).",
)
@click.option("--san", "san", default="", metavar="NAME", help="A name it is to show.")
@click.option("--against", metavar="CAP", help="Try it on a server: HOST:PORT.")
def verify(session: Session, file: Path, ca: Path | None, san: str, against: str | None) -> int:
    """Check a certificate as a peer would; the exit code is 8 when there is a fault."""
    authority = ca or _authority(session, file)
    checks = certificates.verify(file, authority, SystemClock().wall_ms(), server_name=san)
    if against:
        from vmrctl.handshake import try_server

        checks += try_server(contexts.with_port(against), file, authority)
    rows = [
        {"name": c.name, "ok": c.ok, "detail": c.detail, "remedy": c.remedy or None} for c in checks
    ]
    session.show_list(CHECK, rows)
    return 0 if all(check.ok for check in checks) else EXIT_FAULTS_FOUND


def _check_free(out: Path) -> None:
    """A key that is gone cannot be brought back."""
    there = [f for end in (".pem", ".key") if (f := out.with_name(out.name + end)).exists()]
    if there:
        raise usage(
            f"{' and '.join(map(str, there))} exist already.",
            field="OUT",
            value=str(out),
            remedy="Choose another OUT, or add --force to replace what is there.",
        )


def _role_uri(role: str) -> str:
    return role if role.startswith(_SCHEME) else _SCHEME + role


def _authority(session: Session, file: Path) -> Path | None:
    beside = file.parent / certificates.CA_CERTIFICATE
    if beside.exists() and beside != file:
        return beside
    named = os.environ.get("VMRCTL_CA")
    if named:
        return Path(named)
    stored = contexts.load(contexts.config_path(os.environ))
    name = session.options.context or os.environ.get("VMRCTL_CONTEXT") or stored.current
    entry = stored.contexts.get(name)
    return Path(entry.ca) if entry is not None and entry.ca else None
