# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Parquet: one file becomes a table; a column that Arrow can't read is named."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError


class ParquetTable(NamedTuple):
    """A Parquet file's columns."""

    table: pa.Table
    notes: tuple[str, ...]
    """What may not be as it was meant, a line each."""


def read_parquet(data: Any, shown: str) -> ParquetTable:
    """Read a Parquet file's bytes, as Arrow has them; errors call it `shown`.

    Raises:
        UsageError: Arrow can't read one of its columns.
        ArrowException, OSError: it can't read the file.
    """
    try:
        # INT96, as Spark writes times: of nanoseconds, years beyond 2262 would become others.
        file = pq.ParquetFile(data, coerce_int96_timestamp_unit="us")
    except pa.ArrowNotImplementedError as error:  # of which column, nobody can say
        raise UsageError(
            f"{shown} has a column of a type that can't be read: {_shorten(error)}; make it "
            "another type, or text"
        ) from error
    try:
        table = file.read()
    except (pa.ArrowException, OSError):
        for field in file.schema_arrow:
            _try_column(file, field, shown)
        raise
    return ParquetTable(table, _find_intervals(file.schema))


def _try_column(file: pq.ParquetFile, field: pa.Field, shown: str) -> None:
    try:
        file.read(columns=[field.name])
    except (pa.ArrowException, OSError) as error:
        # An array of a fixed size in which DuckDB has written a null reads as a broken list.
        hint = "; if it is an array, make it a list" if pa.types.is_list(field.type) else ""
        raise UsageError(
            f"{shown}: column {field.name!r} ({field.type}) can't be read: {_shorten(error)}{hint}"
        ) from error


def _find_intervals(schema: Any) -> tuple[str, ...]:
    """Return a line for each column of the type that Parquet has, and Arrow has not."""
    columns = map(schema.column, range(len(schema)))
    return tuple(
        f"column {each.path!r} is an INTERVAL, of which its 12 bytes are read; "
        "make it text, or a number of seconds"
        for each in columns
        if each.converted_type == "INTERVAL"
    )


def _shorten(error: Exception) -> str:
    return str(error).partition("\n")[0][:160]
