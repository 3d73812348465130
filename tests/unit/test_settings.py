"""Settings: every key checked, changed all or none, newer values survived."""

from __future__ import annotations

import pytest

from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import parse, render
from vmreplica.core.settings import (
    SETTING_KEYS,
    Settings,
    SettingsRecord,
    as_text,
    changed,
    check,
    settings_of,
)

DEFAULTS = (
    "replication_enabled=true any_server=false default_storage_location= "
    "default_frequency_ms=300000 max_transfers_per_host=3 max_delta_transfers_per_host=8 "
    "bandwidth_limit_bytes_per_s=0 vm_bandwidth_limit_bytes_per_s=0 stream_idle_timeout_s=120 "
    "monitoring_interval_h=12 monitoring_start=09:00 resync_window=always return_policy=start "
    "verify=after-ack fence=none"
)


def test_the_defaults_are_those_of_the_contract() -> None:
    assert " ".join(f"{k}={v}" for k, v in as_text(Settings()).items()) == DEFAULTS


@pytest.mark.parametrize("key", SETTING_KEYS)
def test_every_default_is_accepted_as_text(key: str) -> None:
    assert check(key, as_text(Settings())[key]) == getattr(Settings(), key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("replication_enabled", "yes"),
        ("default_frequency_ms", "4999"),
        ("default_frequency_ms", "5s"),
        ("default_frequency_ms", "-5000"),
        ("default_frequency_ms", "99999999999999999999"),
        ("max_transfers_per_host", "0"),
        ("max_transfers_per_host", "65"),
        ("bandwidth_limit_bytes_per_s", "1e6"),
        ("monitoring_start", "24:00"),
        ("monitoring_start", "9:00"),
        ("resync_window", "22:00"),
        ("resync_window", "22:00-25:00"),
        ("return_policy", "stop"),
        ("verify", ""),
        ("fence", "ipmi"),
        ("default_storage_location", "relative"),
        ("default_storage_location", "/a/../b"),
        ("default_storage_location", "/"),
        ("default_storage_location", "/a//b"),
        ("default_storage_location", "/a\nb"),
        ("no_such_key", "1"),
    ],
)
def test_bad_values_name_key_value_and_remedy(key: str, value: str) -> None:
    with pytest.raises(Problem) as refused:
        changed(SettingsRecord(), {key: value})
    assert refused.value.reason is Reason.BAD_FIELD
    assert (refused.value.field, refused.value.value) == (key, value)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [("resync_window", "22:00-06:30"), ("resync_window", "never"), ("fence", " none ")],
)
def test_good_values(key: str, value: str) -> None:
    assert check(key, value) == value.strip()


def test_any_server_needs_a_location() -> None:
    with pytest.raises(Problem) as refused:
        changed(SettingsRecord(), {"any_server": "true"})
    assert refused.value.field == "default_storage_location"
    both = changed(SettingsRecord(), {"any_server": "true", "default_storage_location": "/s/"})
    assert settings_of(both).default_storage_location == "/s"
    with pytest.raises(Problem):
        changed(both, {"default_storage_location": ""})


def test_versions_rise_only_when_something_changes() -> None:
    first = changed(SettingsRecord(), {"verify": "before-ack"})
    assert first.version == 1
    assert changed(first, {"verify": "before-ack"}) is first
    assert changed(first, {"verify": "after-ack"}).version == 2
    with pytest.raises(Problem):
        changed(first, {"fence": "none", "verify": "never"})


def test_what_a_newer_version_wrote_is_kept_and_otherwise_ignored() -> None:
    record = SettingsRecord(
        version=4, values={"fence": "ipmi", "later": "1", "verify": "before-ack"}
    )
    settings = settings_of(parse(SettingsRecord, render(record)))
    assert settings.fence == "none"
    assert settings.verify == "before-ack"
    after = changed(record, {"any_server": "false", "stream_idle_timeout_s": "60"})
    assert after.values["later"] == "1"
    assert after.values["fence"] == "ipmi"
    assert settings_of(None) == Settings()
