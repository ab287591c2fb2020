# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false
"""`Plan`: what prompt tables ask for, row by row and in total, before anything is rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.columns import REQUEST_COLUMNS
from pipeline.request import RenderRequest

PART_ROWS = 10_000
"""Rows that are Python's at a time: a plan may have millions."""
SHORT_ID_DIGITS = 16


@dataclass(frozen=True)
class Reason:
    """One kind of problem, and how many rows have it."""

    kind: str
    """What the rows have in common: `num_frames: expected 4k+1 from 5 to 81`."""
    count: int
    example: str
    """The first row's problem in full: `num_frames: got 18, expected 4k+1 from 5 to 81; …`."""
    source: str
    row: int
    """The first row: its table as given, or of several files its file, and its number there,
    counted from 0."""


@dataclass(frozen=True)
class PlannedRow:
    """Where a row is, and what it is called."""

    source: str
    """Its table as given."""
    row: int
    """Its number, counted from 0."""
    name: str
    """Its id; where it has none, its clip's, shortened as in the manifest."""

    def __str__(self) -> str:
        """Return the name and the place."""
        return f"{self.name} (row {self.row} of {self.source})"


@dataclass(frozen=True)
class PlannedTable:
    """One table, planned.

    `rows` has one row a table row, in its order: `row` int64; `id`, `clip_id`, `reject` string, of
    which exactly one of `clip_id` and `reject` is null; the request's fields; then the labels in
    their own types. A rejected row's fields hold what could be read, else null.
    """

    source: str
    """The table as given."""
    uri: str
    """The same, absolute."""
    name: str
    """A file-safe name, the same in every run: the key of its rows in an output."""
    rows: pa.Table
    reasons: tuple[Reason, ...]
    """Why rows are rejected; a row with two problems counts in both."""
    hints: tuple[str, ...]
    """What may not be as it was meant, a line each: files passed over, misspelt columns."""
    files: tuple[tuple[str, int], ...]
    """The files as messages name them, each with its number of rows, in order."""

    def locate(self, row: int) -> tuple[str, int]:
        """Return a row's file, as messages name it, and its number there."""
        for file, num_rows in self.files:
            if row < num_rows:
                return file, row
            row -= num_rows
        raise IndexError(f"no row {row} behind the last")

    def with_clip_ids(self, clip_id_of: Callable[[RenderRequest], str]) -> PlannedTable:
        """Return the table with other clip ids, those that its requests have by `clip_id_of`."""

        def rename(part: pa.RecordBatch) -> pa.Array:
            ids = list[str | None]()
            for clip_id, *values in zip(*(c.to_pylist() for c in part.columns), strict=True):
                fields = dict(zip(REQUEST_COLUMNS, values, strict=True))
                # They have been checked, and to do it again takes longer than all the rest.
                ids.append(clip_id and clip_id_of(RenderRequest.model_construct(**fields)))
            return pa.array(ids, pa.string())

        parts = self.rows.select(("clip_id", *REQUEST_COLUMNS)).to_batches(PART_ROWS)
        renamed = pa.chunked_array(map(rename, parts), pa.string())
        place = self.rows.column_names.index("clip_id")
        return replace(self, rows=self.rows.set_column(place, "clip_id", renamed))

    def read_valid(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield (clip id, the named columns' values…) of each row that is a request."""
        for part in self.rows.select(("clip_id", *columns)).to_batches(PART_ROWS):
            cells = (column.to_pylist() for column in part.columns)
            yield from (each for each in zip(*cells, strict=True) if each[0] is not None)


@dataclass(frozen=True)
class Plan:
    """All tables of a call. Totals count a clip that several rows ask for once."""

    tables: tuple[PlannedTable, ...]

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(table.rows.num_rows for table in self.tables)

    @property
    def rejected(self) -> int:
        """Rows with a problem."""
        return sum(table.rows["clip_id"].null_count for table in self.tables)

    @property
    def valid(self) -> int:
        """Rows that are requests."""
        return self.rows - self.rejected

    @cached_property
    def clip_ids(self) -> Set[str]:
        """The ids of all distinct clips."""
        return {clip_id for table in self.tables for (clip_id,) in table.read_valid()}

    @property
    def clips(self) -> int:
        """Distinct clips."""
        return len(self.clip_ids)

    @property
    def duplicates(self) -> int:
        """Valid rows beyond the first of each clip."""
        return self.valid - self.clips

    @cached_property
    def shared(self) -> Mapping[str, int]:
        """How many rows ask for a clip, of each clip that several ask for."""
        chunks = [chunk for table in self.tables for chunk in table.rows["clip_id"].chunks]
        counts = pa.chunked_array(chunks, pa.string()).drop_null().value_counts()
        several = counts.filter(pa.array(counts.field("counts").to_numpy() > 1))
        return {each["values"]: each["counts"] for each in several.to_pylist()}

    def count_rows(self, clip_id: str) -> int:
        """Return how many rows ask for one of the plan's clips."""
        return self.shared.get(clip_id, 1)

    @cached_property
    def shapes(self) -> Counter[tuple[int, int, int, float]]:
        """How many distinct clips have which width, height, frames and frames a second."""
        each = self._read_clips("width", "height", "num_frames", "fps")
        return Counter((width, height, frames, fps) for _, width, height, frames, fps in each)

    @property
    def frames(self) -> int:
        """Frames of all distinct clips."""
        return sum(n * frames for (_, _, frames, _), n in self.shapes.items())

    @property
    def pixels(self) -> int:
        """Pixels of all frames of all distinct clips."""
        return sum(
            n * width * height * frames for (width, height, frames, _), n in self.shapes.items()
        )

    @property
    def duration_s(self) -> float:
        """Playing time of all distinct clips, in seconds."""
        return sum(n * frames / fps for (_, _, frames, fps), n in self.shapes.items())

    @cached_property
    def reasons(self) -> tuple[Reason, ...]:
        """Why rows are rejected, the most frequent first, each with its first row."""
        return merge_reasons(reason for table in self.tables for reason in table.reasons)

    def requests(self, done: Set[str] = frozenset()) -> dict[str, RenderRequest]:
        """Return each distinct clip's request but of those `done`, by clip id.

        Most work first, ties by clip id.
        """
        requests = {
            clip_id: RenderRequest(**dict(zip(REQUEST_COLUMNS, values, strict=True)))
            for clip_id, *values in self._read_clips(*REQUEST_COLUMNS)
            if clip_id not in done
        }
        return dict(sorted(requests.items(), key=lambda each: (-each[1].work, each[0])))

    def with_clip_ids(self, clip_id_of: Callable[[RenderRequest], str]) -> Plan:
        """Return the plan with other clip ids: one for each request, as before."""
        return Plan(tuple(table.with_clip_ids(clip_id_of) for table in self.tables))

    def find_rows(self, clip_ids: Iterable[str]) -> Iterator[tuple[str, PlannedRow]]:
        """Yield (clip id, row) of each row that asks for one of these clips, in table order."""
        places = [(place, each) for each in set(clip_ids) for place in self._places.get(each, ())]
        for (number, row), clip_id in sorted(places):
            table = self.tables[number]
            row_id = table.rows["id"][row].as_py()
            yield clip_id, PlannedRow(*table.locate(row), name_row(row_id, clip_id))

    @cached_property
    def _places(self) -> dict[str, list[tuple[int, int]]]:
        """The rows that ask for each clip, by table and number: nobody looks until a clip fails."""
        places: dict[str, list[tuple[int, int]]] = {}
        for number, table in enumerate(self.tables):
            for clip_id, row in table.read_valid("row"):
                places.setdefault(clip_id, []).append((number, row))
        return places

    def _read_clips(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield (clip id, the named columns' values…) of each distinct clip, in table order."""
        seen = set[str]()
        for table in self.tables:
            for each in table.read_valid(*columns):
                if each[0] not in seen:
                    seen.add(each[0])
                    yield each


def name_row(row_id: str | None, clip_id: str) -> str:
    """Return what a row that asks for a clip is called."""
    return clip_id[:SHORT_ID_DIGITS] if row_id is None else row_id


def merge_reasons(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Return one reason of each kind with the counts added and the first example: most first."""
    merged: dict[str, Reason] = {}
    for each in reasons:
        first = merged.get(each.kind, each)
        count = each.count if first is each else first.count + each.count
        merged[each.kind] = Reason(each.kind, count, first.example, first.source, first.row)
    return tuple(sorted(merged.values(), key=lambda reason: (-reason.count, reason.kind)))
