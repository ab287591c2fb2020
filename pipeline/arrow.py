"""Bytes for Arrow to read, and Python values as Arrow."""

# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import lib

CHUNK_ROWS = 2**16
"""Rows of an array that is built at once: 2 GiB of text is the most that one can hold."""


def open_bytes(data: bytes) -> pa.BufferReader:
    """Return a file of `data` for Arrow, in memory that is Arrow's own.

    Arrow's threads may be the last to let go of what they read. Of a Python object they can't
    without the interpreter, and when that is ending, the process aborts: after its work is done,
    about once in ten runs of a small command.
    """
    copy = pa.BufferOutputStream()
    copy.write(data)
    return pa.BufferReader(copy.getvalue())


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
