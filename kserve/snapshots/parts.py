"""The files of a pipeline's output: which they are, what they are, and what is known of them before they are read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve.errors import InputError

TAXONOMY_FILES = ("topics.csv", "topic_edges.csv", "edges.csv")
"""These may lie beside the parts in a folder and are no parts."""

MANIFEST = "_manifest.json"
FILE_MANIFEST = ".manifest.json"
"""The manifest of a folder's parts, and the ending of that of a single file."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the input; ``name`` is what reports call it, unique within the input."""

    name: str
    path: Path
    bytes: int
    kind: str
    """``parquet`` or ``csv``."""

    def digest(self) -> str:
        """SHA-256 of the file in hexadecimal, read in a stream; any thread may compute it."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_parts(source: str | Path) -> tuple[Part, ...]:
    """The parts of a file, a folder or a glob, sorted by path. InputError: there are none, or they cannot be parts."""
    path = Path(source)
    if path.is_dir():
        files = _files_of_folder(path)
    elif path.exists():
        files = [path]
    else:
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        files = sorted(file for file in found if _may_be_part(file) and file.is_file())
    if not files:
        raise InputError("no input there", file=source, remedy="name a Parquet or CSV file, a folder or a glob")
    base = path if path.is_dir() else _common_folder(files)
    parts = tuple(_part(file, file.relative_to(base).as_posix()) for file in files)
    for part in parts:
        if part.kind != parts[0].kind:
            raise InputError(
                f"this part is {part.kind}, but {parts[0].path} is {parts[0].kind}",
                file=part.path,
                remedy="build from parts of one kind",
            )
    return parts


def _may_be_part(file: Path) -> bool:
    return not file.name.startswith(("_", ".")) and not file.name.endswith(FILE_MANIFEST)


def _files_of_folder(folder: Path) -> list[Path]:
    try:
        there = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot be listed: {error.strerror}", file=folder) from error
    entries = [entry for entry in there if _may_be_part(entry) and entry.name not in TAXONOMY_FILES]
    for entry in entries:
        if not entry.is_file():
            raise InputError(
                "not a file, within a folder of parts", file=entry, remedy="give a glob such as 'folder/**/*.parquet'"
            )
    return entries


def _common_folder(files: list[Path]) -> Path:
    folder = files[0].parent
    while not all(file.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder


def _part(file: Path, name: str) -> Part:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from error
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if size == 0:
        raise InputError("the file is empty: 0 bytes", file=file, remedy="write this part again, or remove it")
    if start == b"PAR1" or suffixes[-1:] in ([".parquet"], [".pq"]):
        return Part(name, file, size, "parquet")
    if ".csv" in suffixes[-2:]:
        return Part(name, file, size, "csv")
    raise InputError("neither Parquet nor CSV", file=file, remedy="CSV files are told by their ending, .csv or .csv.gz")


def manifest_file(source: str | Path, parts: tuple[Part, ...]) -> Path | None:
    """Where the manifest of these parts belongs: ``_manifest.json`` in their folder, or ``FILE.manifest.json``.

    None: they lie in several folders.
    """
    first = parts[0].path
    if len({part.path.parent for part in parts}) > 1:
        return None
    return first.with_name(first.name + FILE_MANIFEST) if Path(source).is_file() else first.parent / MANIFEST


def load_manifest(source: str | Path, parts: tuple[Part, ...]) -> dict[str, Any] | None:
    """The JSON object beside the parts, or None. Raises InputError when it is there but no JSON object."""
    file = manifest_file(source, parts)
    if file is None or not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_bytes(), parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise InputError(f"no JSON: {error}", file=file, remedy="write the manifest again, or remove it") from error
    if not isinstance(manifest, dict):
        raise InputError("no JSON object", file=file, remedy='write a manifest such as {"scored_at": ...}')
    return manifest


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def shortfalls(told: Mapping[str, Any] | None, read: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a pipeline's manifest does not say that all of its output was read, in words; nothing: it does.

    ``told`` is the manifest, or None. ``read`` are the parts as they were read: name, rows, bytes, sha256.
    """
    if told is None:
        return ["the input has no manifest; the pipeline writes it last, so its output may be half-finished"]
    faults = [] if told.get("complete") is True else ["the manifest does not say that the output is complete"]
    if not isinstance(told.get("scored_at"), str):
        faults.append("the manifest does not say when the scores were made")
    named = told.get("parts")
    if not isinstance(named, list) or not all(isinstance(part, dict) and "name" in part for part in named):
        return [*faults, "the manifest does not name its parts"]
    return faults + _differing(named, {part["name"]: part for part in read}) + _miscounted(told, read)


def _differing(named: Sequence[Mapping[str, Any]], read: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is told of each part, against what it was."""
    names = [str(part["name"]) for part in named]
    faults = [f"part {name} is named twice" for name, count in Counter(names).items() if count > 1]
    for name, part in zip(names, named, strict=True):
        if name not in read:
            faults.append(f"part {name} is missing ({part.get('rows')} rows)")
            continue
        for field in ("rows", "sha256", "bytes"):
            here, there = read[name].get(field), part.get(field)
            if here != there and (field != "bytes" or there is not None):
                faults.append(f"part {name}: {field} {here}, the manifest says {there!r}")
    return faults + [f"part {name} is not in the manifest" for name in sorted(read.keys() - set(names))]


def _miscounted(told: Mapping[str, Any], read: Sequence[Mapping[str, Any]]) -> list[str]:
    """The total, when it is told."""
    rows = sum(part.get("rows") or 0 for part in read)
    stated = told.get("rows", rows)
    return [] if stated == rows else [f"{rows} rows were read, the manifest says {stated}"]
