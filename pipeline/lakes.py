# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Lakes: folders whose files hold rows that a table has no more, as Delta's and Iceberg's do.

Which rows count is in the table's own log; read as a folder, it gives those that were withdrawn.
"""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.errors import UsageError
from pipeline.listing import list_parents, show_path

_SIGNS = {
    "a Delta": ("_delta_log", "*.json", "delta_scan"),
    "an Iceberg": ("metadata", "*.metadata.json", "iceberg_scan"),
}
"""Of each kind, the folder of its logs, what is in it, and what DuckDB reads the table by."""


def refuse_lakes(filesystem: Any, base: str, files: Iterable[str]) -> None:
    """Check that none of the files below a folder, or right in it, is a Delta or Iceberg table's.

    `base` has no `key=value` folder at its end: that would be within a table.

    Raises:
        UsageError: one is; the line says how to give the table's rows.
    """
    above = (folder for file in files for folder in _list_roots(file, base))
    for folder in dict.fromkeys(above):
        for kind, (logs, pattern, scan) in _SIGNS.items():
            if _has(filesystem, posixpath.join(folder, logs), pattern):
                shown = show_path(filesystem, folder)
                raise UsageError(
                    f"{shown} is {kind} table, whose files also hold rows that it has no "
                    "more; export those that it has to Parquet, and give that: by DuckDB, "
                    f"COPY (FROM {scan}('{shown}')) TO 'ads.parquet'"
                )


def _list_roots(file: str, base: str) -> Iterator[str]:
    """Yield the folders that may be a file's table; of Iceberg's, files are in its `data`."""
    for folder in list_parents(file, base):
        if "=" in posixpath.basename(folder):  # a partition, of which there may be thousands
            continue
        yield folder
        if posixpath.basename(folder) == "data":
            yield posixpath.dirname(folder)


def _has(filesystem: Any, folder: str, pattern: str) -> bool:
    try:
        return filesystem.isdir(folder) and bool(
            filesystem.glob(f"{glob.escape(folder)}/{pattern}")
        )
    except PermissionError:  # who may read a file is not always let list what is beside it
        return False
