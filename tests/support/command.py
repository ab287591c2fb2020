"""What tests of the `rushes` command share: its calls, tables for it, and what a folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RUSHES = (sys.executable, "-m", "jobs.cli")
QUICK = ("--set", "request.num_inference_steps=2", "--set", "gangs.0.count=1")
"""A recipe that renders a clip in a blink: what is tested is everything around the model."""


def write_table(path: Path, **columns: Any) -> str:
    """Write a Parquet table of the given columns; return its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def list_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rushes(
    *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in a process of its own."""
    return subprocess.run(
        [*RUSHES, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def wait_until(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    """Return the first true value of `condition`, asked again and again."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s:.0f} s: {what}")
