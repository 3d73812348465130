"""A merge as one line of JSON: what the node's main process and its store worker exchange."""

from __future__ import annotations

import json
from typing import Any

from node.disk.merge import MergeRequest
from vmreplica.core.manifest import Layer

Json = dict[str, Any]


def layer_json(layer: Layer) -> Json:
    """A sealed layer; drafts are never merged."""
    return {
        "file": layer.file,
        "target": layer.target,
        "from_seq": layer.from_seq,
        "to_seq": layer.to_seq,
        "size_bytes": layer.size_bytes,
        "bytes": layer.bytes,
    }


def parse_layer(data: Json) -> Layer:
    """The reverse of layer_json."""
    return Layer(**data)


def render_request(number: int, request: MergeRequest) -> bytes:
    """One line."""
    return _line(
        {
            "number": number,
            "folder": request.folder,
            "layers": [layer_json(layer) for layer in request.layers],
            "size_bytes": request.size_bytes,
            "part": request.part,
            "name": request.name,
            "bottom": request.bottom,
        }
    )


def parse_request(line: bytes) -> tuple[int, MergeRequest]:
    """The request and its number."""
    data: Json = json.loads(line)
    return data["number"], MergeRequest(
        folder=data["folder"],
        layers=tuple(parse_layer(x) for x in data["layers"]),
        size_bytes=data["size_bytes"],
        part=data["part"],
        name=data["name"],
        bottom=data["bottom"],
    )


def render_done(number: int, layer: Layer) -> bytes:
    """The answer to a merge that went well."""
    return _line({"number": number, "layer": layer_json(layer)})


def render_failed(number: int, kind: str, message: str, *, no_space: bool) -> bytes:
    """The answer to one that did not."""
    return _line({"number": number, "kind": kind, "message": message, "no_space": no_space})


def _line(data: Json) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"
