"""Runs where a machine lacks what most have: a home, standard streams, a short path for sockets."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.cli import ExitCode
from tests.support.command import QUICK, RUSHES, make_environment, rushes, write_table

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def table(tmp_path: Path) -> str:
    return write_table(tmp_path / "ads.parquet", prompt=["a red ball"], num_frames=[5])


def read_ends(folder: Path) -> list[str]:
    return [row["status"] for row in pq.read_table(folder / "out" / "manifest").to_pylist()]


def test_a_home_that_cannot_be_written_is_not_needed(tmp_path: Path, table: str) -> None:
    (home := tmp_path / "home").write_text("a file, below which nothing can be made")
    done = rushes("render", table, "-o", "out", *QUICK, cwd=tmp_path, HOME=str(home))
    assert done.returncode == ExitCode.OK, done
    assert read_ends(tmp_path) == ["committed"]


def test_a_path_too_long_for_sockets_is_told_before_anything_is_written(
    tmp_path: Path, table: str
) -> None:
    (long := tmp_path / ("x" * 90)).mkdir()
    refused = rushes("render", table, "-o", "out", *QUICK, cwd=tmp_path, TMPDIR=str(long))
    assert refused.returncode == ExitCode.USAGE, refused
    (line,) = refused.stderr.splitlines()
    assert "set TMPDIR, or RAY_TMPDIR, to a shorter" in line
    assert not (tmp_path / "out").exists()


def test_standard_streams_that_are_closed_are_not_needed(tmp_path: Path, table: str) -> None:
    command = shlex.join([*RUSHES, "render", table, "-o", "out", *QUICK]) + " <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=make_environment(), check=False)
    assert done.returncode == ExitCode.OK
    assert read_ends(tmp_path) == ["committed"]
