# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""`Plan`: what prompt tables ask for, row by row and in total, before anything is rendered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.columns import REQUEST_COLUMNS
from pipeline.request import RenderRequest


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
    """The first row: its table as given, and its number, counted from 0."""


@dataclass(frozen=True)
class PlannedTable:
    """One table, planned.

    `rows` has one row a table row, in its order: `row` int64; `id`, `clip_id`, `reject` string, of
    which exactly one of `clip_id` and `reject` is null; the request's fields; then the labels in
    their own types. A rejected row's fields hold what could be read, else null.
    """

    source: str
    """The table as given."""
    name: str
    """A file-safe name, the same in every run: the key of its rows in an output."""
    rows: pa.Table
    reasons: tuple[Reason, ...]
    """Why rows are rejected; a row with two problems counts in both."""
    hints: tuple[str, ...]
    """Labels that look like a misspelt known column, a line each."""

    def read_valid(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield (clip id, the named columns' values…) of each row that is a request."""
        cells = (self.rows[name].to_pylist() for name in ("clip_id", *columns))
        return (each for each in zip(*cells, strict=True) if each[0] is not None)


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

    @property
    def clip_ids(self) -> Set[str]:
        """The ids of all distinct clips."""
        return self._clips.keys()

    @property
    def clips(self) -> int:
        """Distinct clips."""
        return len(self._clips)

    @property
    def duplicates(self) -> int:
        """Valid rows beyond the first of each clip."""
        return self.valid - self.clips

    @property
    def sizes(self) -> Iterator[tuple[int, int, int]]:
        """The width, height and frames of each distinct clip."""
        return ((row["width"], row["height"], row["num_frames"]) for row in self._clips.values())

    @cached_property
    def frames(self) -> int:
        """Frames of all distinct clips."""
        return sum(row["num_frames"] for row in self._clips.values())

    @cached_property
    def pixels(self) -> int:
        """Pixels of all frames of all distinct clips."""
        sizes = (row["width"] * row["height"] for row in self._clips.values())
        frames = (row["num_frames"] for row in self._clips.values())
        return sum(size * count for size, count in zip(sizes, frames, strict=True))

    @cached_property
    def duration_s(self) -> float:
        """Playing time of all distinct clips, in seconds."""
        return sum(row["num_frames"] / row["fps"] for row in self._clips.values())

    @cached_property
    def reasons(self) -> tuple[Reason, ...]:
        """Why rows are rejected, the most frequent first, each with its first row."""
        return merge_reasons(reason for table in self.tables for reason in table.reasons)

    def requests(self) -> dict[str, RenderRequest]:
        """Return each distinct clip's request by clip id: most work first, ties by clip id."""
        requests = {clip_id: RenderRequest(**row) for clip_id, row in self._clips.items()}
        return dict(sorted(requests.items(), key=lambda each: (-each[1].work, each[0])))

    @cached_property
    def _clips(self) -> dict[str, dict[str, Any]]:
        """The fields of each distinct clip, in table order."""
        clips: dict[str, dict[str, Any]] = {}
        for table in self.tables:
            for clip_id, *values in table.read_valid(*REQUEST_COLUMNS):
                if clip_id not in clips:
                    clips[clip_id] = dict(zip(REQUEST_COLUMNS, values, strict=True))
        return clips


def merge_reasons(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Return one reason of each kind with the counts added and the first example: most first."""
    merged: dict[str, Reason] = {}
    for each in reasons:
        first = merged.get(each.kind, each)
        count = each.count if first is each else first.count + each.count
        merged[each.kind] = Reason(each.kind, count, first.example, first.source, first.row)
    return tuple(sorted(merged.values(), key=lambda reason: (-reason.count, reason.kind)))
