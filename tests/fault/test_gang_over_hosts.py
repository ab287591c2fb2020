"""A gang whose ranks are on hosts of their own makes clips, and outlives the loss of a host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline.runs import read_runs
from pipeline.store import ObjectStore
from tests.fault.gang_over_hosts import NUM_CLIPS
from tests.support.command import ROOT, make_environment
from tests.support.isolated import ISOLATED, need_namespaces

pytestmark = pytest.mark.timeout(600)


def test_a_gang_over_two_hosts_of_which_one_dies(tmp_path: Path) -> None:
    need_namespaces()
    done = subprocess.run(
        [*ISOLATED, sys.executable, "-m", "tests.fault.gang_over_hosts", tmp_path],
        cwd=ROOT, env=make_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    run_log = (tmp_path / "run.log").read_text() if (tmp_path / "run.log").exists() else ""
    assert done.returncode == 0, done.stderr[-4000:] + run_log
    commits = list(Ledger(ObjectStore(tmp_path / "out")).read_commits())
    assert {each.layout for each in commits} == {"tensor=2"}
    assert sorted(each.attempts for each in commits) == [1] * (NUM_CLIPS - 1) + [2], run_log
    (record,) = read_runs(ObjectStore(tmp_path / "out"))
    assert record.gangs_lost == 1, run_log
