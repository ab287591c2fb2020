# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""CSV: one file becomes a table whose labels have types, where those lose nothing of the text."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from decimal import Decimal
from operator import lt
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv

from pipeline.arrow import open_bytes
from pipeline.csv_text import check_text
from pipeline.errors import UsageError

_EXCEL_MARK = re.compile(rb'(\xef\xbb\xbf)?("?)sep=,\2(?=[\r\n])', re.IGNORECASE)
"""Of a first line that is for Excel alone: what parts its columns."""
_FLOAT = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?")
_MAX_BLOCK = 2**31 - 1
_HEADER_BYTES = 2**16


class CsvTable(NamedTuple):
    """A CSV file's columns."""

    table: pa.Table
    texts: dict[str, pa.ChunkedArray]
    """By name, the text of every label that has another type."""
    notes: tuple[str, ...]
    """What may not be as it was meant, a line each."""


def read_csv(file: Any, shown: str, known: Sequence[str]) -> CsvTable:
    """Read a CSV file; a label whose type would lose something of its text is text.

    A column without a name is left out where it has no values, as Excel leaves behind, or is the
    first and numbers the rows upwards from 0 or 1, as the index of pandas and R does.

    Raises:
        UsageError: another column has no name, or its text is not in order.
    """
    file = _end_header(_skip_mark(file))
    notes = check_text(file, shown)
    types = dict.fromkeys(known, pa.string())
    table = _parse_csv(file, pa_csv.ConvertOptions(column_types=types))
    table = _drop_nameless(table, shown)
    names = table.column_names
    typed = [name for name in names if names.count(name) == 1 and not _is_text(table[name].type)]
    if not typed:
        return CsvTable(table, {}, notes)
    types = dict.fromkeys(typed, pa.string())
    options = pa_csv.ConvertOptions(column_types=types, include_columns=typed)
    texts = _parse_csv(file, options)
    for name in typed:
        if not _says_all(table[name], texts[name]):
            table = table.set_column(names.index(name), name, texts[name])
    return CsvTable(table, {name: texts[name] for name in typed}, notes)


def _skip_mark(file: Any) -> Any:
    """Return a file whose first line, where it is for Excel alone, is blank."""
    file.seek(0)
    mark = _EXCEL_MARK.match(file.read(16))
    if not mark:
        return file
    file.seek(mark.end())
    return open_bytes((mark[1] or b"") + file.read())


def _end_header(file: Any) -> Any:
    """Return a file whose header, where that is all of it, ends as a line does, for Arrow."""
    file.seek(0)
    head = file.read(_HEADER_BYTES)
    is_all = len(head) == file.size() and not {*b"\r\n"} & {*head}
    return open_bytes(head + b"\n") if is_all else file


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.binary(), pa.null())


def _says_all(typed: pa.ChunkedArray, texts: pa.ChunkedArray) -> bool:
    """Return whether a tool that has these values may have written them so: nothing is lost.

    No two texts are one value; floats have no digits but those that tell them apart, or all the
    same number of decimals; a time with an offset would become UTC's.
    """
    kind = typed.type
    if getattr(kind, "tz", None) is not None:
        return False
    if typed.cast(pa.string()).equals(texts):
        return True
    written = set(texts.drop_null().to_pylist())
    if len(written) != len(typed.drop_null().unique()):
        return False
    if pa.types.is_timestamp(kind):
        return len({text[10:11] for text in written}) == 1
    if pa.types.is_boolean(kind):
        return written <= {"True", "False"} or written <= {"TRUE", "FALSE"}
    return pa.types.is_floating(kind) and _are_floats(written)


def _are_floats(written: Set[str]) -> bool:
    if not all(map(_FLOAT.fullmatch, written)):
        return False
    decimals = [text.partition("e")[0].partition(".")[2] for text in written]
    is_padded = any(each.endswith("0") and each != "0" for each in decimals)
    return (not is_padded or len({*map(len, decimals)}) == 1) and all(
        Decimal(text) == Decimal(repr(float(text))) for text in written
    )


def _drop_nameless(table: pa.Table, shown: str) -> pa.Table:
    nameless: list[int] = []
    for place in reversed(range(table.num_columns)):
        if table.column_names[place].strip():
            continue
        values = table.column(place)
        if values.null_count == len(values) or (place == 0 and _is_index(values)):
            table = table.remove_column(place)
        else:
            nameless.insert(0, place + 1)
    if nameless:
        which = ", ".join(map(str, nameless))
        raise UsageError(
            f"{shown}: columns have values but no name in the header: {which} (counted from 1); "
            "name them, or take them out"
        )
    return table


def _is_index(values: pa.ChunkedArray) -> bool:
    if values.type != pa.int64() or values.null_count:
        return False
    numbers = values.to_pylist()
    return numbers[0] in (0, 1) and all(map(lt, numbers, numbers[1:]))


def _parse_csv(file: Any, options: pa_csv.ConvertOptions) -> pa.Table:
    """Parse a CSV file in one block, so that a column's type is inferred from all of its rows."""
    options.check_utf8, options.null_values, options.strings_can_be_null = False, [""], True
    size = file.size()
    file.seek(0)
    return pa_csv.read_csv(
        file,
        pa_csv.ReadOptions(use_threads=False, block_size=min(max(size, 2**16) + 1, _MAX_BLOCK)),
        pa_csv.ParseOptions(newlines_in_values=True),
        options,
    )
