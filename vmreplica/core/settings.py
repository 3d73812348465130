"""The central settings: one table of keys with type, default, range and meaning.

Values travel as text (`vmrctl settings set K=V`) and are stored as text under the cluster
store's `settings` key, so that an older program keeps what a newer one wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

from vmreplica.core.problems import Problem, Reason

MIN_FREQUENCY_MS = 5_000
MAX_FREQUENCY_MS = 24 * 3_600_000
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_WINDOW = re.compile(rf"{_TIME_OF_DAY.pattern}-{_TIME_OF_DAY.pattern}")

Value = bool | int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in force. Units stand last in the names."""

    replication_enabled: bool = True
    any_server: bool = False
    default_storage_location: str = ""
    default_frequency_ms: int = 300_000
    max_transfers_per_host: int = 3
    max_delta_transfers_per_host: int = 8
    bandwidth_limit_bytes_per_s: int = 0
    vm_bandwidth_limit_bytes_per_s: int = 0
    stream_idle_timeout_s: int = 120
    monitoring_interval_h: int = 12
    monitoring_start: str = "09:00"
    resync_window: str = "always"
    return_policy: str = "start"
    verify: str = "after-ack"
    fence: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsRecord:
    """The value of the `settings` key: what was set, as text, and how often it was changed."""

    version: int = 0
    values: dict[str, str] = field(default_factory=dict)
    op_id: str = ""


def _boolean(text: str) -> bool:
    match text.lower():
        case "true":
            return True
        case "false":
            return False
        case _:
            raise ValueError("true or false")


def _number(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        wanted = f"a whole number from {low} to {high}"
        if not re.fullmatch(r"[0-9]{1,19}", text):
            raise ValueError(wanted)
        if not low <= int(text) <= high:
            raise ValueError(wanted)
        return int(text)

    return convert


def _one_of(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise ValueError("one of " + ", ".join(words))
        return text

    return convert


def _path(text: str) -> str:
    parts = text.split("/")
    bad = ".." in parts or "." in parts or "" in parts[1:-1] or not text.isprintable()
    if text and (not text.startswith("/") or bad or text == "/"):
        raise ValueError("an absolute path without . or .., or nothing")
    return text.rstrip("/")


def _time_of_day(text: str) -> str:
    if not _TIME_OF_DAY.fullmatch(text):
        raise ValueError("a time of day as HH:MM")
    return text


def _window(text: str) -> str:
    if text not in ("always", "never") and not _WINDOW.fullmatch(text):
        raise ValueError("always, never or HH:MM-HH:MM")
    return text


_RATE = _number(0, 1 << 50)
_CONVERTERS: dict[str, Callable[[str], Value]] = {
    "replication_enabled": _boolean,
    "any_server": _boolean,
    "default_storage_location": _path,
    "default_frequency_ms": _number(MIN_FREQUENCY_MS, MAX_FREQUENCY_MS),
    "max_transfers_per_host": _number(1, 64),
    "max_delta_transfers_per_host": _number(1, 256),
    "bandwidth_limit_bytes_per_s": _RATE,
    "vm_bandwidth_limit_bytes_per_s": _RATE,
    "stream_idle_timeout_s": _number(5, 86_400),
    "monitoring_interval_h": _number(1, 168),
    "monitoring_start": _time_of_day,
    "resync_window": _window,
    "return_policy": _one_of("start", "hold"),
    "verify": _one_of("after-ack", "before-ack"),
    "fence": _one_of("none"),
}
SETTING_KEYS = tuple(f.name for f in fields(Settings))


def as_text(settings: Settings) -> dict[str, str]:
    """Every key with its value in force, as text, in the table's order."""
    return {key: _text(getattr(settings, key)) for key in SETTING_KEYS}


def changed(record: SettingsRecord, changes: Mapping[str, str]) -> SettingsRecord:
    """``record`` with ``changes`` applied; the very same record when nothing differs.

    :raises Problem: BAD_FIELD naming the first wrong key, its value and the remedy.
    """
    before = settings_of(record)
    values = {key: check(key, text) for key, text in changes.items()}
    after = replace(before, **values)  # type: ignore[arg-type]
    if after.any_server and not after.default_storage_location:
        raise Problem(
            Reason.BAD_FIELD,
            "any_server=true needs a storage location for the senders it lets in.",
            field="default_storage_location",
            value="",
            remedy="Set default_storage_location to an absolute path in the same command.",
        )
    if after == before:
        return record
    texts = {**record.values, **{key: _text(value) for key, value in values.items()}}
    return SettingsRecord(version=record.version + 1, values=texts)


def check(key: str, text: str) -> Value:
    """One value, converted. :raises Problem: BAD_FIELD."""
    convert = _CONVERTERS.get(key)
    if convert is None:
        raise Problem(
            Reason.BAD_FIELD,
            f"There is no setting {key!r}.",
            field=key,
            value=text,
            remedy="Known settings: " + ", ".join(SETTING_KEYS) + ".",
        )
    try:
        return convert(text.strip())
    except ValueError as error:
        raise Problem(
            Reason.BAD_FIELD,
            f"{key} cannot be {text!r}.",
            field=key,
            value=text,
            remedy=f"Give {error}.",
        ) from error


def settings_of(record: SettingsRecord | None) -> Settings:
    """The settings in force. A stored value that this version cannot read falls to its default:
    a newer program may have written it, and a daemon must not stop for it.
    """
    values: dict[str, Value] = {}
    for key, text in (record.values if record else {}).items():
        try:
            values[key] = check(key, text)
        except Problem:
            continue
    return replace(Settings(), **values)  # type: ignore[arg-type]


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
