"""SIGTERM before a run has begun to render: it ends at once, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import ExitCode
from jobs.plan import plan_call
from jobs.recipes import find_recipe
from pipeline.lease import Lease, read_lease
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import (
    QUICK,
    find_children,
    find_program,
    is_alive,
    list_files,
    make_environment,
    start_rushes,
    wait_until,
    write_table,
)

SOON_S = 60.0


@pytest.mark.parametrize("sign", ["lease", "raylet"])
def test_a_run_that_is_stopped_while_it_starts(tmp_path: Path, sign: str) -> None:
    write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    store = ObjectStore(tmp_path / "out")
    with start_rushes("render", "ads.parquet", "-o", "out", *QUICK, cwd=tmp_path) as run:
        wait_until(lambda: read_lease(store), SOON_S, "the lease")
        if sign == "raylet":
            wait_until(lambda: find_program(run.pid, "raylet"), SOON_S, "a raylet")
        started = find_children(run.pid)
        run.terminate()
        stdout, stderr = run.communicate(timeout=SOON_S)
        wait_until(lambda: not any(map(is_alive, started)), SOON_S, "Ray's end")
    assert run.returncode == ExitCode.STOPPED, (stdout, stderr)
    assert "same command goes on from here" in stdout
    assert "index.html" not in stdout, "it has written none"
    assert list(store.list("work")) == []
    held = read_lease(store)
    assert held is not None
    assert held.released


def test_a_run_that_is_stopped_while_it_waits_for_another(tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    store = ObjectStore(tmp_path / "out")
    Ledger(store).open_output(plan_call([table], find_recipe()).identity)
    Lease.acquire(store, 600.0)
    before = list_files(tmp_path)
    call = ("render", table, "-o", "out", "--wait", "--log-format", "json")
    with start_rushes(*call, cwd=tmp_path, PYTHONUNBUFFERED="1") as run:
        assert run.stdout is not None
        assert run.stdout.readline()  # it tells of the wait before it waits
        run.terminate()
        stdout, stderr = run.communicate(timeout=SOON_S)
    assert run.returncode == ExitCode.STOPPED, (stdout, stderr)
    assert list_files(tmp_path) == before


_STOPPED_IN_AN_IMPORT = """
import time
from jobs.stop import StopSignal, stop_signals
with stop_signals():
    try:
        import half
        time.sleep(60)
    except StopSignal:
        print("stopped, with a whole module:", half.is_whole)
"""


def test_an_import_is_not_broken_off(tmp_path: Path) -> None:
    lines = ["import os, signal", "os.kill(os.getpid(), signal.SIGTERM)", "is_whole = True"]
    (tmp_path / "half.py").write_text("\n".join(lines))
    environment = make_environment()
    path = os.pathsep.join(filter(None, [str(tmp_path), environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", _STOPPED_IN_AN_IMPORT],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "stopped, with a whole module: True\n", done.stderr
