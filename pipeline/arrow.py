"""Bytes for Arrow to read."""

# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import pyarrow as pa


def open_bytes(data: bytes) -> pa.BufferReader:
    """Return a file of `data` for Arrow, in memory that is Arrow's own.

    Arrow's threads may be the last to let go of what they read. Of a Python object they can't
    without the interpreter, and when that is ending, the process aborts: after its work is done,
    about once in ten runs of a small command.
    """
    copy = pa.BufferOutputStream()
    copy.write(data)
    return pa.BufferReader(copy.getvalue())
