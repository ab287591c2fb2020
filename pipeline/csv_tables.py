# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""CSV: one file becomes a table whose labels have types, where those lose nothing of the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from pipeline.errors import UsageError

_LOSSLESS = {
    pa.int64(): re.compile(r"0|-?[1-9]\d*"),
    pa.float64(): re.compile(r"(?!-?0\d)(?!-?\d{16})[^+].*"),
    pa.time32("s"): re.compile(r"\d\d:\d\d:\d\d"),
}
"""Text in a CSV that these types say all of: not 007, +49 30 or an id of 20 digits, nor 16:10."""
_MAX_BLOCK = 2**31 - 1
_HEADER_BYTES = 2**16


def read_csv(file: Any, shown: str, known: Sequence[str]) -> pa.Table:
    """Read a CSV file; a label whose type would lose something of its text is text.

    A column without a name is left out where it has no values, as Excel leaves behind, or counts
    the rows, as pandas' index does.

    Raises:
        UsageError: another column has no name, or its rows don't all have a value for each.
    """
    header = re.split(rb"[\r\n]", file.read(_HEADER_BYTES), maxsplit=1)[0]
    parted = next((mark for mark in (b";", b"\t", b"|") if mark in header), None)
    if parted and b"," not in header:
        raise UsageError(f"{shown}: its columns are parted by {parted.decode()!r}; expected commas")
    types = dict.fromkeys(known, pa.string())
    table = _parse_csv(file, shown, pa_csv.ConvertOptions(column_types=types))
    table = _drop_nameless(table, shown)
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


def _drop_nameless(table: pa.Table, shown: str) -> pa.Table:
    nameless: list[int] = []
    for place in reversed(range(table.num_columns)):
        if table.column_names[place].strip():
            continue
        values = table.column(place)
        if values.null_count == len(values) or (
            place == 0 and values.to_pylist() == list(range(len(values)))
        ):
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
        if _quotes(row.text) % 2:
            advice = "a quotation mark opens in it that nothing closes"
        elif row.actual_columns < row.expected_columns:
            advice = "a missing value needs its comma, too"
        else:
            advice = "quote values that hold commas"
        raise UsageError(
            f"{shown}: line {row.number} has {row.actual_columns} values, "
            f"expected {row.expected_columns}; {advice}"
        ) from error


def _quotes(text: str | bytes) -> int:
    return text.count('"') if isinstance(text, str) else text.count(b'"')
