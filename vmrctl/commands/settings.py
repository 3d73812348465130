"""``vmrctl settings``: settings of the whole cluster, changed while it runs."""

from __future__ import annotations

import click

from vmrctl import output
from vmrctl.errors import usage
from vmrctl.output import Column, View
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmreplica.v1 import settings_pb2 as wire
from vmreplica.wire.json_shapes import shape

command = Noun("settings", help="Settings of the whole cluster.")
SETTING = View("Setting", (Column("KEY", "key"), Column("VALUE", "value")), ("key", "value"))


@verb(command, "show", "vmrctl settings show", "vmrctl settings show -o json")
def show(session: Session) -> None:
    """Show every setting."""
    answer = session.client.read(
        "SettingsService/GetSettings", wire.GetSettingsRequest(), wire.GetSettingsResponse
    )
    result = shape(answer)
    result["settings"] = dict(sorted(result["settings"].items()))
    if session.options.output in ("json", "yaml"):
        session.show(SETTING, result)
        return
    rows = [{"key": key, "value": answer.settings[key]} for key in sorted(answer.settings)]
    session.write(output.listing(SETTING, rows, session.options.output))


@verb(
    command,
    "set",
    "vmrctl settings set default_frequency_ms=30000",
    "vmrctl settings set any_server=true default_storage_location=/srv/replicas",
)
@click.argument("assignments", metavar="KEY=VALUE...", nargs=-1, required=True)
def set_settings(session: Session, assignments: tuple[str, ...]) -> None:
    """Change settings, all or none. They hold at once, everywhere."""
    values: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise usage(
                f"{assignment!r} is not KEY=VALUE.",
                field="KEY=VALUE",
                value=assignment,
                remedy="vmrctl settings show lists the keys.",
            )
        if key in values:
            raise usage(f"{key} is given twice.", field=key, value=value)
        values[key] = value
    answer = session.client.write(
        "SettingsService/UpdateSettings",
        wire.UpdateSettingsRequest(settings=values),
        wire.UpdateSettingsResponse,
    )
    sentence = "Set " + ", ".join(f"{k}={v}" for k, v in values.items()) + "."
    session.done(shape(answer), sentence if answer.changed else "Nothing to change.")
