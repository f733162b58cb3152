"""What ``--json`` prints, one struct for each document, with what each key means.

The page docs/reference/json.md and the answers of ``p2pgrid schema`` are made from these. Keys are only ever added, at
the end.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import msgspec

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: dict[str, tuple[str, ...]] = {
    "run": ("results:Results", "results:Detached"),
    "jobs": ("jobs:Jobs",),
    "watch": ("watching:Watch",),
    "results": ("results:Results",),
    "cancel": ("jobs:Cancelled",),
    "simulate": ("simulating:SeedVerdict", "simulating:BatchVerdict"),
    "put": ("blobs:Put",),
    "get": ("blobs:Got",),
    "blobs": ("blobs:Blobs",),
    "pin": ("blobs:Pinned",),
    "unpin": ("blobs:Pinned",),
    "peers": ("peers:Peers",),
    "pause": ("pausing:Pause",),
    "resume": ("pausing:Pause",),
    "finish": ("pausing:Pause",),
    "doctor": ("doctor:Doctor",),
    "config": ("settings:Config",),
    "top": ("top:Top",),
    "why": ("why:Why", "blobs:BlobReasons"),
}
"""By command, in the order of its help: the structs, of which a document is one."""


def forms_of(command: str) -> list[type[msgspec.Struct]]:
    """The structs of a command's documents."""
    found = []
    for place in DOCUMENTS[command]:
        module, _, name = place.partition(":")
        found.append(getattr(importlib.import_module(f"{__name__}.{module}"), name))
    return found


def schema_of(command: str) -> dict[str, Any]:
    """The JSON Schema of a command's documents."""
    import msgspec

    (*references,), components = msgspec.json.schema_components(forms_of(command), ref_template="#/$defs/{name}")
    one = references[0] if len(references) == 1 else {"anyOf": references}
    return {"$schema": SCHEMA_DIALECT, "title": f"p2pgrid {command} --json", **one, "$defs": components}
