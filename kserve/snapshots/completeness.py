"""The manifest that says that a pipeline's output is complete, made by hand for pipelines that write none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kserve.errors import InputError
from kserve.snapshots.durable import replace_file, storage
from kserve.snapshots.ingest import count_rows
from kserve.snapshots.parts import Part, find_parts, manifest_file


def write_manifest(source: str | Path, scored_at: datetime, *, force: bool = False) -> Path:
    """Count and digest the parts of an input, and write its manifest last: whoever calls this says that it is complete.

    Args:
        source: a file, or a folder of parts.
        scored_at: aware: when the scores were made.
        force: replace a manifest that is there.

    Raises InputError: there is a manifest, a part is broken, the parts lie in several folders, or scored_at is naive.
    StorageError: the manifest could not be written.
    """
    parts = find_parts(source)
    file = manifest_file(source, parts)
    if file is None:
        raise InputError("the parts lie in several folders", file=source, remedy="put them in one")
    if file.exists() and not force:
        raise InputError("there is a manifest already", file=file, remedy="replace it with --force")
    if scored_at.tzinfo is None:
        raise InputError(f"scored_at {scored_at.isoformat()} has no time zone", remedy="write it as 2026-11-21T04:00Z")
    described = [_described(part) for part in parts]
    manifest = {
        "complete": True,
        "scored_at": f"{scored_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "rows": sum(part["rows"] for part in described),
        "parts": described,
    }
    with storage(f"writing {file}"):
        replace_file(file, json.dumps(manifest, indent=1).encode() + b"\n")
    return file


def _described(part: Part) -> dict[str, Any]:
    return {"name": part.name, "rows": count_rows(part), "bytes": part.bytes, "sha256": part.digest()}
