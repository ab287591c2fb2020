"""`Breaker`: rows, clips and device time by the values of labels.

A label is a column of the tables that rushes carries along: product, locale, campaign.
"""
# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from jobs.report.documents import Breakdown, LabelValue
from pipeline.columns import ROW_COLUMNS
from pipeline.documents import Status
from pipeline.errors import UsageError
from pipeline.ledger import Ledger

MAX_LABELS = 4
"""How many labels are broken down by where none is named."""
MAX_FEW_VALUES = 20
"""The most values of such a label."""
MAX_VALUES = 1000
"""The most values of a label that is named."""

Labels = dict[str, Sequence[str | None]]
"""The values of labels by name, row by row."""


@dataclass
class _Group:
    rows: Counter[Status] = field(default_factory=Counter[Status])
    clips: int = 0
    video_s: float = 0.0
    device_seconds: float = 0.0


class Breaker:
    """Breaks down by the labels that are named, or by those that have few values."""

    def __init__(self, ledger: Ledger, named: Sequence[str]) -> None:
        """Find the labels of all planned tables, and take those that are named, or all.

        Raises:
            UsageError: no table has a label that is named, or its values are no plain ones.
        """
        types: dict[str, list[pa.DataType]] = {}
        for _, parts in ledger.load_rows():
            for each in next(parts).schema:
                if each.name not in ROW_COLUMNS:
                    types.setdefault(each.name, []).append(each.type)
        plain = [name for name, found in types.items() if all(map(_is_plain, found))]
        for name in named:
            if name not in types:
                raise UsageError(f"--by {name}: no table has such a label; {_list_labels(plain)}")
            if name not in plain:
                raise UsageError(
                    f"--by {name}: its values are {types[name][0]}, which can't be broken down "
                    f"by; {_list_labels(plain)}"
                )
        self._named = bool(named)
        self._most = MAX_VALUES if named else MAX_FEW_VALUES
        self._groups: dict[str, dict[str | None, _Group]] = {
            name: {} for name in dict.fromkeys(named or plain)
        }

    def read(self, rows: pa.Table) -> Labels:
        """Return the values of the labels that are broken down by, as text, of some rows."""
        return {
            name: _as_text(rows[name]).to_pylist()
            if name in rows.column_names
            else [None] * rows.num_rows
            for name in self._groups
        }

    def add_row(self, labels: Labels, place: int, status: Status) -> None:
        """Count a row; `labels` is what `read` returned, `place` the row's in it.

        Raises:
            UsageError: a label that was named has more than `MAX_VALUES` values.
        """
        for name, groups in list(self._groups.items()):
            value = labels[name][place]
            if value not in groups:
                if len(groups) == self._most:
                    self._drop(name)
                    continue
                groups[value] = _Group()
            groups[value].rows[status] += 1

    def add_clip(self, labels: Labels, place: int, video_s: float, device_s: float) -> None:
        """Count a committed clip of a row that was counted."""
        for name, groups in self._groups.items():
            group = groups[labels[name][place]]
            group.clips += 1
            group.video_s += video_s
            group.device_seconds += device_s

    def listed(self, cost: Callable[[float], float | None]) -> tuple[Breakdown, ...]:
        """Return the labels that are named, or the first few that have two values or more.

        `cost` tells what so many device-seconds cost.
        """
        chosen = [name for name, groups in self._groups.items() if self._named or len(groups) > 1]
        return tuple(
            Breakdown(label=name, values=tuple(_list_values(self._groups[name], cost)))
            for name in (chosen if self._named else chosen[:MAX_LABELS])
        )

    def _drop(self, name: str) -> None:
        if self._named:
            raise UsageError(
                f"--by {name}: it has more than {MAX_VALUES:,} values; name a label with fewer"
            )
        del self._groups[name]


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as text; times of a zone in UTC, since not every machine knows all zones."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz:
        text = column.cast(pa.timestamp(kind.unit)).cast(pa.string())
        return cast(Any, pc).binary_join_element_wise(text, "Z", "")
    return column.cast(pa.string())


def _list_values(
    groups: dict[str | None, _Group], cost: Callable[[float], float | None]
) -> Iterable[LabelValue]:
    """Yield one label's values, most device time first."""
    order = sorted(groups.items(), key=lambda each: (-each[1].device_seconds, each[0] or ""))
    for value, group in order:
        yield LabelValue(
            value=value,
            rows=group.rows.total(),
            committed=group.rows["committed"],
            failed=group.rows["failed"],
            rejected=group.rows["rejected"],
            remaining=group.rows["remaining"],
            clips=group.clips,
            video_s=group.video_s,
            device_seconds=group.device_seconds,
            cost=cost(group.device_seconds),
        )


def _list_labels(plain: Sequence[str]) -> str:
    return f"there are {', '.join(plain)}" if plain else "there is none"


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether values of a type have a short text that tells them apart."""
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    checks = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
        pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal,
        pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_null,
    )  # fmt: skip
    return any(check(kind) for check in checks)
