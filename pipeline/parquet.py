"""The Parquet objects of an output, read in parts; where one is damaged, the error names it."""
# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrow import open_bytes
from pipeline.documents import refuse_content
from pipeline.errors import UsageError
from pipeline.store import ObjectStore

END_BYTES = 8
"""The footer's length, in four bytes, and Parquet's mark."""


def read_parts(
    store: ObjectStore, key: str, columns: Sequence[str] | None, part_rows: int
) -> Iterator[pa.Table]:
    """Yield an object's rows, at most `part_rows` at a time and at least once.

    Of some columns, in their order, only if given.

    Raises:
        UsageError: it isn't Parquet, lacks a column, or turns out to be damaged on the way.
    """
    content = open_bytes(store.read(key))
    with _explained(store, key):
        file = pq.ParquetFile(content)
    schema: pa.Schema = file.schema_arrow
    names = list(columns) if columns else schema.names
    _check_columns(store, key, schema, names)
    if not file.metadata.num_rows:
        return iter((pa.schema(map(schema.field, names)).empty_table(),))
    parts = _explain_each(store, key, file.iter_batches(part_rows, columns=names))
    return (pa.table(part).select(names) for part in parts)


def check_footer(store: ObjectStore, key: str, columns: Iterable[str]) -> None:
    """Check that an object is Parquet with these columns, by its footer, which is read alone.

    Raises:
        UsageError: it isn't.
    """
    size_bytes, footer = store.size(key), b""
    if size_bytes:
        end = store.read(key, max(size_bytes - END_BYTES, 0), size_bytes)
        footer_bytes = int.from_bytes(end[:4], "little") + END_BYTES
        footer = store.read(key, max(size_bytes - footer_bytes, 0), size_bytes)
    with _explained(store, key):
        schema = pq.read_schema(open_bytes(footer))
    _check_columns(store, key, schema, columns)


def _check_columns(store: ObjectStore, key: str, schema: pa.Schema, names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in schema.names]:
        raise _refuse(store, key, f"it has no column {', '.join(missing)}")


def _explain_each(
    store: ObjectStore, key: str, parts: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    while True:
        with _explained(store, key):
            part = next(parts, None)
        if part is None:
            return
        yield part


@contextmanager
def _explained(store: ObjectStore, key: str) -> Generator[None]:
    """Have errors of Arrow, which has the object's bytes, name the object: it is damaged.

    Some are OSErrors: as a cause, one would say that the store is away.
    """
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _refuse(store, key, str(error).partition("\n")[0]) from None


def _refuse(store: ObjectStore, key: str, says: str) -> UsageError:
    folder, _, name = key.removesuffix(".parquet").partition("/")
    if folder != "rows":
        return refuse_content(store, key, says)
    drop = f"rushes clean {store.uri} --table {name} --yes"
    return refuse_content(store, key, says, f"restore it, or drop the table: {drop}")
