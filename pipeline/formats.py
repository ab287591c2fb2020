# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false
"""Formats: one Parquet, CSV or JSONL file becomes cells of known columns, and typed labels.

Known columns come as plain Python values, since every file may have typed them otherwise; all other
columns are labels and stay Arrow. Text that is not UTF-8 stays bytes in a known column, for its row
to be rejected, and is replaced in a label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.arrow import open_bytes
from pipeline.cells import HalfFloat, Moment, SingleFloat, find_lost_digits
from pipeline.csv_tables import read_csv
from pipeline.errors import UsageError
from pipeline.json_tables import parse_objects, replace_broken, type_values, write_values
from pipeline.labels import clean_label
from pipeline.parquet_tables import read_parquet

PARQUET_MARK = b"PAR1"
FORMATS = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".csv": "CSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSONL",
}
ROW_MARK = "\0row"
"""A label column of nulls that gives every file's labels its row count. Dropped in the end."""
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NARROW = {pa.float16(): (np.float16, HalfFloat), pa.float32(): (np.float32, SingleFloat)}
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # an unnamed index: nobody's label


class Part(NamedTuple):
    """The share of one file in a source's rows."""

    shown: str
    """The file as messages name it."""
    num_rows: int
    names: tuple[str, ...]
    """Its columns."""


@dataclass(frozen=True)
class Columns:
    """Rows of a file or source: the cells of each known column that it has, and its labels."""

    num_rows: int
    names: tuple[str, ...]
    """All columns, as the file has them."""
    cells: dict[str, list[Any]]
    labels: pa.Table
    texts: dict[str, Any] = field(default_factory=dict[str, Any])
    """By name, the labels that have no types but those that they look like: as text, or in a type
    that becomes the text that they were."""
    parts: tuple[Part, ...] = ()
    """The files that the rows of a source come from, in their order."""
    notes: tuple[str, ...] = ()
    """What may not be as it was meant, a line each."""


def read_file(file: Any, suffix: str, shown: str, known: Sequence[str]) -> Columns:
    """Read an open binary file of a known suffix; errors call it `shown`.

    Raises:
        UsageError: it isn't what its suffix says, or a column occurs twice.
    """
    mark = file.read(len(PARQUET_MARK))
    file.seek(0)
    if not mark:
        raise UsageError(f"{shown} is empty (0 bytes)")
    kind = FORMATS[suffix]
    if kind != "Parquet" and mark.startswith(_UTF16_MARKS):
        raise UsageError(f"{shown} is in UTF-16; save it as UTF-8")
    if kind == "Parquet" and mark != PARQUET_MARK:
        raise UsageError(
            f"{shown} is not a Parquet file (it doesn't begin with PAR1); "
            "a CSV or JSONL table needs the suffix .csv or .jsonl"
        )
    if kind != "Parquet" and mark == PARQUET_MARK:
        raise UsageError(f"{shown} is a Parquet file; give it the suffix .parquet")
    if kind == "JSONL":
        return _split_objects(parse_objects(file.read(), shown), known)
    try:
        data = open_bytes(file.read())
        if kind == "Parquet":
            (table, notes), texts = read_parquet(data, shown), {}
        else:
            table, texts, notes = read_csv(data, shown, known)
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise UsageError(f"{shown} is not a readable {kind} file: {reason}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{shown}: column {twice[0]!r} occurs twice")
    cells = {name: _list_cells(table[name]) for name in names if name in known}
    labels = {ROW_MARK: pa.chunked_array([pa.nulls(table.num_rows)])}
    for name in names:
        if name not in known and not _PANDAS_INDEX.fullmatch(name):
            labels[name] = clean_label(table[name], f"{shown}: label {name!r}")
    if kind == "CSV":
        texts = labels | texts
    return Columns(table.num_rows, tuple(names), cells, pa.table(labels), texts, notes=notes)


def _split_objects(objects: list[dict[str, Any]], known: Sequence[str]) -> Columns:
    names = list(dict.fromkeys(name for each in objects for name in each))
    cells = {name: [each.get(name) for each in objects] for name in names if name in known}
    labels: dict[str, Any] = {ROW_MARK: pa.nulls(len(objects))}
    texts: dict[str, Any] = {}
    for name in names:
        if name not in known:
            values, label = [each.get(name) for each in objects], replace_broken(name)
            labels[label] = typed = type_values(values)
            # Arrow writes 10.0 as 10, and nothing nested.
            is_own = pa.types.is_floating(typed.type) or pa.types.is_nested(typed.type)
            texts[label] = write_values(values) if is_own else typed
    return Columns(len(objects), tuple(names), cells, pa.table(labels), texts)


def _list_cells(column: pa.ChunkedArray) -> list[Any]:
    """Return a column as Python values; where its text is not UTF-8, as bytes."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _list_cells(column.cast(kind.value_type))
    if pa.types.is_duration(kind):
        return _list_durations(column)
    if pa.types.is_temporal(kind):
        texts = column.cast(pa.string()).to_pylist()
        return [text and Moment(text, str(kind)) for text in texts]
    if kind in _NARROW:
        return [None if cell is None else _widen(cell, kind) for cell in column.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pass
    try:
        return column.cast(pa.large_binary()).to_pylist()
    except pa.ArrowException:  # nested: of no use in a known column, so its type says enough
        return [{} if valid else None for valid in column.is_valid().to_pylist()]


def _list_durations(column: pa.ChunkedArray) -> list[Moment | None]:
    kind = column.type
    places = {"s": 0, "ms": -3, "us": -6, "ns": -9}[kind.unit]
    counts = column.cast(pa.int64()).to_pylist()
    found = (None if count is None else Decimal(count).scaleb(places) for count in counts)
    return [
        None if each is None else Moment(f"{float(each):.12g} s", str(kind), each) for each in found
    ]


def _widen(cell: float, kind: pa.DataType) -> float:
    """Return the number that a narrow float is written as: 3.3, not the 3.2999999523 it holds."""
    as_written, narrow = _NARROW[kind]
    number = narrow(str(as_written(cell)))
    return number if find_lost_digits(number) else float(number)
