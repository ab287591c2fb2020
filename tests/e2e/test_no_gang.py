"""A run that gets no gang says so, and why."""

from __future__ import annotations

from pathlib import Path

from jobs.cli import ExitCode
from tests.support.command import QUICK, rushes, write_table


def test_why_no_gang_can_be_started_is_how_its_call_ends(tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    nowhere = "gangs.0.label_selector={'rushes/group' = 'nowhere'}"
    impossible = ("--set", nowhere, "--set", "pool.start_timeout_s=0.2")
    broken = rushes("render", table, "-o", "out", *QUICK, *impossible, cwd=tmp_path)
    assert broken.returncode == ExitCode.BROKEN, broken.stderr
    said, then = broken.stderr.splitlines()[-2:]
    why = "no gang like single-0 can be started: single-0: resources 1 x "
    assert said.startswith(f"rushes: the run broke: PoolBrokenError: {why}")
    assert "goes on from here" in then
