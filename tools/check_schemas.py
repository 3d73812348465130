"""The JSON that vmrctl prints, as JSON Schemas in docs/schemas/: generated, checked, only growing.

    tools/check_schemas.py            check
    tools/check_schemas.py --write    write the schemas that the shapes of today have
    tools/check_schemas.py --publish  take today's schemas as what users rely on

Every message with a shape of its own is walked with all its fields set and with none set. The
schemas on disk must be the generated ones, and must still have everything that was published.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from google.protobuf.descriptor import FieldDescriptor  # noqa: E402
from google.protobuf.message import Message  # noqa: E402

from vmreplica.core.problems import Problem, Reason  # noqa: E402
from vmreplica.v1 import (  # noqa: E402
    connection_pb2,
    event_pb2,
    failover_pb2,
    location_pb2,
    node_pb2,
    replica_pb2,
    replication_pb2,
    settings_pb2,
    store_pb2,
    types_pb2,
    version_pb2,
)
from vmreplica.wire.enums import spellings  # noqa: E402
from vmreplica.wire.json_shapes import problem_shape, shape  # noqa: E402

SCHEMAS = ROOT / "docs" / "schemas"
PUBLISHED = SCHEMAS / "published.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"

KINDS: dict[str, type[Message]] = {
    "broker": types_pb2.Broker,
    "chain": types_pb2.Chain,
    "connection-check": connection_pb2.ConnectionCheck,
    "drain-node": node_pb2.DrainNodeResponse,
    "enable-replication": replication_pb2.EnableReplicationResponse,
    "event": event_pb2.WatchEventsResponse,
    "locate": location_pb2.LocateResponse,
    "node": types_pb2.Node,
    "operation": types_pb2.Operation,
    "point": types_pb2.Point,
    "remove-replica": replica_pb2.DeleteReplicaResponse,
    "replica": types_pb2.Replica,
    "replication": types_pb2.Replication,
    "settings": settings_pb2.GetSettingsResponse,
    "start-test-failover": failover_pb2.StartTestFailoverResponse,
    "store-check": store_pb2.StoreCheck,
    "test-failover": types_pb2.TestFailover,
    "version": version_pb2.GetVersionResponse,
}
_SAMPLE_TIME_S = 1_795_406_400


def filled(kind: type[Message]) -> Message:
    """A message with every field set, repeated ones with one element."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        _fill(message, field)
    return message


def _fill(message: Message, field: FieldDescriptor) -> None:
    target = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        target["key"] = "value"
    elif field.message_type is not None:
        part = target.add() if field.label == FieldDescriptor.LABEL_REPEATED else target
        if field.message_type.full_name == "google.protobuf.Timestamp":
            part.seconds = _SAMPLE_TIME_S
        else:
            for inner in field.message_type.fields:
                _fill(part, inner)
    else:
        value = _sample(field)
        if field.label == FieldDescriptor.LABEL_REPEATED:
            target.append(value)
        else:
            setattr(message, field.name, value)


def _sample(field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if field.name == "problem_reason":
                return "NO_SPACE"
            return b"\x0a" if field.type == FieldDescriptor.TYPE_BYTES else "text"
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            return 1
        case _:
            return 7


def schema_of(full: Any, empty: Any, enums: dict[str, list[str]], name: str = "") -> dict[str, Any]:
    """The schema that a value with everything set and one with nothing set both fit."""
    may_be_null = empty is None and full is not None
    match full:
        case dict() if name in ("data", "result", "settings", "chain", "qemu_json"):
            inner = next(iter(full.values()), "")
            values = schema_of(inner, inner, enums)
            made: dict[str, Any] = {"type": "object", "additionalProperties": values}
        case dict():
            blank = empty if isinstance(empty, dict) else full
            made = {
                "type": "object",
                "properties": {
                    key: schema_of(value, blank.get(key), enums, key) for key, value in full.items()
                },
                "required": list(full),
            }
        case list():
            made = {"type": "array", "items": schema_of(full[0], full[0], enums) if full else {}}
        case bool():
            made = {"type": "boolean"}
        case int():
            made = {"type": "integer", "minimum": 0}
        case str() if re.match(TIME, full):
            made = {"type": "string", "pattern": TIME}
        case str() if name in enums and full in enums[name]:
            return {"enum": [*enums[name], None]}
        case str():
            made = {"type": "string"}
        case None:
            return {}
        case _:
            raise TypeError(f"no schema for {full!r}")
    if may_be_null:
        made["type"] = [made["type"], "null"]
    return made


def _enums(kind: type[Message]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    waiting, done = [kind.DESCRIPTOR], set()
    while waiting:
        descriptor = waiting.pop()
        done.add(descriptor.full_name)
        for field in descriptor.fields:
            if field.enum_type is not None:
                found[field.name] = list(spellings(field.enum_type).values())
            elif field.message_type is not None and field.message_type.full_name not in done:
                waiting.append(field.message_type)
    return found


def generated() -> dict[str, dict[str, Any]]:
    """All schemas by name."""
    made = {}
    for name, kind in KINDS.items():
        body = schema_of(shape(filled(kind)), shape(kind()), _enums(kind))
        made[name] = {"$schema": DIALECT, "title": name, **body}
    full = problem_shape(Problem(Reason.NO_SPACE, "m", field="f", value="v", remedy="r"))
    empty = problem_shape(Problem(Reason.NO_SPACE, "m"))
    made["problem"] = {"$schema": DIALECT, "title": "problem", **schema_of(full, empty, {})}
    return made


def entries(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every member of a schema as (path, type): what users may rely on."""
    kinds = schema.get("type", schema.get("enum", "any"))
    text = ",".join(str(kind) for kind in kinds) if isinstance(kinds, list) else str(kinds)
    yield path or ".", text
    for name, inner in schema.get("properties", {}).items():
        yield from entries(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from entries(schema[key], f"{path}[]")


def lost(published: dict[str, dict[str, str]], now: dict[str, dict[str, Any]]) -> list[str]:
    """What was published and is no longer so, as sentences. Enums may grow."""
    faults = []
    for name, members in published.items():
        present = dict(entries(now[name])) if name in now else {}
        for path, kind in members.items():
            if path not in present:
                faults.append(f"{name}: {path} has gone")
            elif not set(kind.split(",")) <= set(present[path].split(",")):
                faults.append(f"{name}: {path} was {kind} and is {present[path]}")
            elif set(present[path].split(",")) - set(kind.split(",")) == {"null"}:
                faults.append(f"{name}: {path} may be null, and could not be before")
    return faults


def text_of(value: Any) -> str:
    """JSON as it stands in the tree."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Check, write or publish."""
    made = generated()
    if arguments and arguments[0] in ("--write", "--publish"):
        SCHEMAS.mkdir(parents=True, exist_ok=True)
        for name, schema in made.items():
            (SCHEMAS / f"{name}.json").write_text(text_of(schema), encoding="utf-8")
        if arguments[0] == "--publish":
            members = {name: dict(entries(schema)) for name, schema in made.items()}
            PUBLISHED.write_text(text_of(members), encoding="utf-8")
        return 0
    faults = []
    for name, schema in made.items():
        path = SCHEMAS / f"{name}.json"
        if not path.exists() or path.read_text(encoding="utf-8") != text_of(schema):
            faults.append(f"docs/schemas/{name}.json: run tools/check_schemas.py --write")
    faults += [
        f"docs/schemas/{path.name}: belongs to nothing"
        for path in sorted(SCHEMAS.glob("*.json"))
        if path.stem not in made and path != PUBLISHED
    ]
    faults += lost(json.loads(PUBLISHED.read_text(encoding="utf-8")), made)
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
