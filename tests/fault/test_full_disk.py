"""A disk that fills up, then one that may no longer be written: a clear end, nothing corrupt.

The disk is a small tmpfs in a mount namespace of its own, which Linux gives to anybody unless it is
told not to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import ExitCode
from pipeline.ledger import Ledger
from pipeline.probe import read_frames
from pipeline.store import ObjectStore
from tests.support.command import QUICK, make_environment, write_table

pytestmark = pytest.mark.timeout(600)

UNSHARE = ("unshare", "--mount") if os.getuid() == 0 else ("unshare", "--mount", "--map-root-user")
SIZE, MORE = "200k", "64m"
NUM_CLIPS, NUM_FRAMES, ENOUGH = 12, 17, 8
SCRIPT = f"""
mount -t tmpfs -o size={SIZE} none out
"$@"; echo "ended $?"
mount -o remount,size={MORE} out
( while [ $(find out/commits -name '*.json' | wc -l) -lt {ENOUGH} ]; do sleep 0.1; done
  mount -o remount,ro out ) &
"$@"; echo "ended $?"
kill $! 2>/dev/null; wait  # a run that ended too soon would leave it waiting
cp -r out kept
"""


def can_mount(folder: Path) -> bool:
    """Return whether this system lets us have a disk of our own."""
    try:
        call = [*UNSHARE, "mount", "-t", "tmpfs", "none", str(folder)]
        return subprocess.run(call, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    if not can_mount(tmp_path / "out"):
        pytest.skip("no mount namespaces here: needs Linux, and leave to make them")
    write_table(tmp_path / "ads.parquet", prompt=[f"a red ball, {n}" for n in range(NUM_CLIPS)])
    call = (sys.executable, "-m", "jobs.cli", "render", "ads.parquet", "-o", "out", *QUICK)
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", SCRIPT, "sh", *call],
        cwd=tmp_path,
        env=make_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    broken = f"ended {ExitCode.BROKEN.value}"
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ends == [broken, broken], done
    assert "rushes: the run broke" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Read-only file system" in done.stderr
    assert done.stderr.count("the same command goes on from here") == 2
    first, second = done.stdout.split(broken)[:2]
    assert "0 done before" in first
    assert "0 done before" not in second

    ledger = Ledger(ObjectStore(tmp_path / "kept"))
    commits = list(ledger.read_commits())
    assert ENOUGH <= len(commits) < NUM_CLIPS
    for commit in commits:
        for file in (commit.video, commit.poster):
            assert ledger.store.checksum(file.key) == (file.sha256, file.size_bytes)
        assert len(read_frames(tmp_path / "kept" / commit.video.key)) == NUM_FRAMES
    status = ledger.status()
    assert (status.failed, status.remaining) == (0, NUM_CLIPS - len(commits))
