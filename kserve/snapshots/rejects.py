"""Rows that a build does not take: counted by reason, the first ones kept as examples, all written to a file."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from kserve.errors import InputError, StorageError
from kserve.snapshots.columns import Columns, Fault, Reason

if TYPE_CHECKING:
    from kserve.snapshots.columns import U8

HEADER = ("part", "row", "column", "reason", "value", "profile_id")
EXAMPLES = 3


class Rejects:
    """The rejected rows of one build.

    With a ``path``, each is a line of a CSV file there (columns ``HEADER``) that appears with the first of them.
    StorageError: the file cannot be written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.total = 0
        self.counts: Counter[Reason] = Counter()
        self.examples: dict[Reason, list[Fault]] = defaultdict(list)
        """The first EXAMPLES faults of each reason."""
        self._file: IO[str] | None = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, columns: Columns, codes: U8 | None = None) -> int:
        """Take in a batch's rejected rows, and those to which ``codes``[n] gives a Reason (0: none); how many they are.

        ``codes`` is for what no single row shows, such as a duplicate profile id; it does not count a row twice.
        """
        faults = list(columns.faults)
        if codes is not None:
            rows = ((codes != 0) & (columns.reject == 0)).nonzero()[0].tolist()
            faults += [_later(columns, row, Reason(int(codes[row]))) for row in rows]
            faults.sort(key=lambda fault: fault.row)
        self.extend(faults)
        return len(faults)

    def extend(self, faults: Iterable[Fault]) -> None:
        """Take in rejected rows one by one."""
        with self._storage():
            for fault in faults:
                self.total += 1
                self.counts[fault.reason] += 1
                if len(self.examples[fault.reason]) < EXAMPLES:
                    self.examples[fault.reason].append(fault)
                self._write(fault)

    def _write(self, fault: Fault) -> None:
        if self.path is None:
            return
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
            self._writer = csv.writer(self._file)
            self._writer.writerow(HEADER)
        self._writer.writerow((*fault[:3], fault.reason.name, *fault[4:]))

    def close(self) -> None:
        """Finish the file, if there is one."""
        with self._storage():
            if self._file is not None:
                self._file.close()
                self._file = None

    def check(self, limit: int, also: str = "") -> None:
        """Raise InputError, which names the counts and the first row, when more than ``limit`` rows were rejected.

        ``also`` is what no single row shows.
        """
        if self.total <= limit:
            return
        counts = ", ".join(f"{count:,} {reason.name}" for reason, count in self.counts.most_common())
        first = min((faults[0] for faults in self.examples.values() if faults), key=lambda fault: fault.row)
        allowed = f", {limit:,} allowed" if limit else ""
        more = f"; {also}" if also else ""
        more += f"; all are listed in {self.path}" if self.path else ""
        raise InputError(
            f"{self.total:,} rows cannot be taken ({counts}{allowed}), such as {first.value!r}: "
            f"{first.reason.explanation}{more}",
            file=first.part,
            row=first.row,
            field=first.column,
            remedy=f"correct the rows, or build without them with --max-rejects {self.total}",
        )

    @contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path}: the rejects file cannot be written: {error.strerror}") from error


def _later(columns: Columns, row: int, reason: Reason) -> Fault:
    profile_id = int(columns.ids[row])
    return Fault(columns.part, columns.first_row + row, "profile_id", reason, str(profile_id), profile_id)
