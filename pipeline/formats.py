# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false
"""Formats: one Parquet, CSV or JSONL file becomes cells of known columns, and typed labels.

Known columns come as plain Python values, since every file may have typed them otherwise; all other
columns are labels and stay Arrow. Text that is not UTF-8 stays bytes in a known column, for its row
to be rejected, and is replaced in a label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pyarrow import lib

from pipeline.arrow import open_bytes
from pipeline.cells import Moment, SingleFloat, find_lost_digits
from pipeline.errors import UsageError
from pipeline.labels import clean_label

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
CHUNK_ROWS = 2**16
"""Rows of an array that is built at once: 2 GiB of text is the most that one can hold."""
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LOSSLESS = {
    pa.int64(): re.compile(r"0|-?[1-9]\d*"),
    pa.float64(): re.compile(r"(?!-?0\d)(?!-?\d{16})[^+].*"),
    pa.time32("s"): re.compile(r"\d\d:\d\d:\d\d"),
}
"""Text in a CSV that these types say all of: not 007, +49 30 or an id of 20 digits, nor 16:10."""
_NARROW = {pa.float16(): np.float16, pa.float32(): np.float32}
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # an unnamed index: nobody's label
_MAX_BLOCK = 2**31 - 1
_HEADER_BYTES = 2**16


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
    parts: tuple[Part, ...] = ()
    """The files that the rows of a source come from, in their order."""


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
        return _split_objects(_parse_objects(file.read(), shown), known)
    try:
        data = open_bytes(file.read())
        table = pq.ParquetFile(data).read() if kind == "Parquet" else _read_csv(data, shown, known)
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
    return Columns(table.num_rows, tuple(names), cells, pa.table(labels))


def build_array(values: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """Return text, int64 or float64 values as Arrow; `pa.array` would import pandas, 0.3 s."""
    chunks: list[pa.Array] = []
    for start in range(0, len(values), CHUNK_ROWS):
        chunk = values[start : start + CHUNK_ROWS]
        if kind == pa.string():
            builder = lib.StringBuilder()
            builder.append_values(chunk)
            chunks.append(builder.finish())
            continue
        valid = np.packbits([value is not None for value in chunk], bitorder="little")
        data = np.array([value or 0 for value in chunk], kind.to_pandas_dtype())
        buffers = [pa.py_buffer(valid), pa.py_buffer(data)]
        chunks.append(pa.Array.from_buffers(kind, len(chunk), buffers))
    return pa.chunked_array(chunks, kind)


def _read_csv(file: Any, shown: str, known: Sequence[str]) -> pa.Table:
    """Read a CSV file; a label whose type would lose something of its text is text."""
    header = re.split(rb"[\r\n]", file.read(_HEADER_BYTES), maxsplit=1)[0]
    parted = next((mark for mark in (b";", b"\t", b"|") if mark in header), None)
    if parted and b"," not in header:
        raise UsageError(f"{shown}: its columns are parted by {parted.decode()!r}; expected commas")
    types = dict.fromkeys(known, pa.string())
    table = _parse_csv(file, shown, pa_csv.ConvertOptions(column_types=types))
    names = table.column_names
    typed = [name for name in names if names.count(name) == 1 and table[name].type in _LOSSLESS]
    if not typed:
        return table
    types = dict.fromkeys(typed, pa.string())
    options = pa_csv.ConvertOptions(column_types=types, include_columns=typed)
    texts = _parse_csv(file, shown, options)
    for name in typed:
        lossless = _LOSSLESS[table[name].type]
        values = (text.strip() for text in set(texts[name].to_pylist()) if text)
        if not all(map(lossless.fullmatch, values)):
            table = table.set_column(names.index(name), name, texts[name])
    return table


def _parse_csv(file: Any, shown: str, options: pa_csv.ConvertOptions) -> pa.Table:
    """Parse a CSV file in one block, so that a column's type is inferred from all of its rows."""
    ragged: list[Any] = []

    def note_ragged(row: Any) -> str:
        ragged.append(row)
        return "error"

    options.check_utf8, options.null_values, options.strings_can_be_null = False, [""], True
    size = file.size()
    file.seek(0)
    try:
        return pa_csv.read_csv(
            file,
            pa_csv.ReadOptions(use_threads=False, block_size=min(max(size, 2**16) + 1, _MAX_BLOCK)),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note_ragged),
            options,
        )
    except pa.ArrowInvalid as error:
        if not ragged:
            raise
        row = ragged[0]
        raise UsageError(
            f"{shown}: line {row.number} has {row.actual_columns} values, "
            f"expected {row.expected_columns}; quote values that hold commas"
        ) from error


def _parse_objects(content: bytes, shown: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines, or of one JSON array. Python's parser keeps ids as text."""
    text = content.decode("utf-8-sig", "surrogateescape")
    if text.lstrip()[:1] == "[":
        lines: Iterable[tuple[str, str]] = [("its text", text)]
    else:
        lines = ((f"line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    objects: list[dict[str, Any]] = []
    for where, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{shown}: {where} is not JSON ({str(error)[:80]})") from error
        for item in cast(list[Any], value) if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                raise UsageError(f"{shown}: {where} is not a JSON object with a table's columns")
            objects.append(cast(dict[str, Any], item))
    return objects


def _split_objects(objects: list[dict[str, Any]], known: Sequence[str]) -> Columns:
    names = list(dict.fromkeys(name for each in objects for name in each))
    cells = {name: [each.get(name) for each in objects] for name in names if name in known}
    labels: dict[str, Any] = {ROW_MARK: pa.nulls(len(objects))}
    for name in names:
        if name not in known:
            labels[_replace_broken(name)] = _type_values([each.get(name) for each in objects])
    return Columns(len(objects), tuple(names), cells, pa.table(labels))


def _type_values(values: list[Any]) -> pa.Array:
    """Return JSON values in the one type that fits them all, or as text where none does."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError):
        array = None
    if array is not None and not _has_empty_struct(array.type):
        return array
    texts = (each if isinstance(each, str | None) else json.dumps(each) for each in values)
    return pa.array([each and _replace_broken(each) for each in texts], pa.string())


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Return whether all of a type's values in one place are `{}`, which Parquet can't hold."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not inner) or any(map(_has_empty_struct, inner))


def _replace_broken(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


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
    number = float(str(_NARROW[kind](cell)))
    return SingleFloat(number) if find_lost_digits(SingleFloat(number)) else number
