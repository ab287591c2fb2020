"""How many rows of an output's tables ended how."""
# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set

import pyarrow as pa

from pipeline.columns import SOURCE_KEY
from pipeline.documents import OutputStatus, RowCounts, Status, TableStatus


class RowCounter:
    """Counts an output's rows, a table's part at a time."""

    def __init__(self, committed: Set[str]) -> None:
        """Start with no row; `committed` are the output's clips."""
        self.clips = set[str]()
        """The clips that rows ask for."""
        self._committed = committed
        self._states: dict[str, Counter[Status]] = {}
        self._sources: dict[str, str | None] = {}

    def add_part(self, table: str, rows: pa.Table, states: Iterable[Status]) -> None:
        """Count some rows of a table as they were saved, and their states, in the same order."""
        if table not in self._states:
            source = (rows.schema.metadata or {}).get(SOURCE_KEY)
            self._states[table] = Counter()
            self._sources[table] = source.decode() if source else None
        self._states[table].update(states)
        self.clips.update(key for key in rows["clip_id"].to_pylist() if key is not None)

    def status(self) -> OutputStatus:
        """Return the counts of what was added."""
        tables = tuple(
            TableStatus(name=name, source=self._sources[name], rows=n.total(), **dict(n))
            for name, n in self._states.items()
        )
        return OutputStatus(
            **dict(add_counts(tables)),
            clips=len(self.clips),
            clips_committed=len(self.clips & self._committed),
            tables=tables,
        )


def add_counts(counts: Iterable[RowCounts]) -> RowCounts:
    """Return the sums."""
    sums = Counter[str]()
    for each in counts:
        sums.update({name: getattr(each, name) for name in RowCounts.model_fields})
    return RowCounts(**sums)
