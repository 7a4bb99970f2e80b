"""The files of a pipeline's output: which they are, what they are, and what is known of them before they are read."""

from __future__ import annotations

import hashlib
import json
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
    entries = sorted(entry for entry in folder.iterdir() if _may_be_part(entry) and entry.name not in TAXONOMY_FILES)
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


def load_manifest(source: str | Path, parts: tuple[Part, ...]) -> dict[str, Any] | None:
    """The JSON object beside the parts: ``_manifest.json`` in their folder, or ``FILE.manifest.json``; None: none.

    Raises InputError when it is there but no JSON object.
    """
    first = parts[0].path
    folders = {part.path.parent for part in parts}
    file = first.with_name(first.name + FILE_MANIFEST) if Path(source).is_file() else first.parent / MANIFEST
    if len(folders) > 1 or not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"no JSON: {error}", file=file, remedy="write the manifest again, or remove it") from error
    if not isinstance(manifest, dict):
        raise InputError("no JSON object", file=file, remedy='write a manifest such as {"scored_at": ...}')
    return manifest
