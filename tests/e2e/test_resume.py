"""A run that is killed, interrupted or loses a rank: nothing is lost, nothing is rendered twice.

Three runs of one call, each disturbed in another way once it has committed something new.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from jobs.cli import ExitCode
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.probe import read_frames
from pipeline.store import ObjectStore
from tests.support.command import (
    ONE_GANG,
    end_process,
    find_children,
    is_alive,
    start_rushes,
    wait_until,
    write_table,
)

pytestmark = pytest.mark.timeout(600)

NUM_CLIPS = 10
NUM_FRAMES = 17
RUN_S = 300.0
"""The longest wait for a run to get somewhere on a machine that is busy with other things."""
GONE_S = 30.0
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They look for their raylet once a minute, and end when it is gone."""
CALL = ("render", "ads.parquet", "-o", "out", *ONE_GANG)


@dataclass(frozen=True)
class Stage:
    """The output when a disturbed run had ended, and how it ended."""

    returncode: int
    stdout: str
    stderr: str
    commits: dict[str, Commit]
    files: dict[str, int]
    """When each file of a clip or commit was written, by path."""
    left: list[str]
    """Processes of the run that outlived it."""


def read_stage(folder: Path, code: int, shown: tuple[str, str], left: list[str]) -> Stage:
    ledger = Ledger(ObjectStore(folder / "out"))
    files = {str(path): path.stat().st_mtime_ns for path in (folder / "out").glob("c*/*/**/*.*")}
    commits = {each.clip_id: each for each in ledger.read_commits()}
    return Stage(code, *shown, commits, files, left)


def count_commits(folder: Path) -> int:
    return len(list((folder / "out" / "commits").glob("*/*.json")))


def find_name(process: psutil.Process) -> str:
    """Return what a process calls itself; nothing once it is gone."""
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


def find_rank(pid: int) -> psutil.Process | None:
    """Return the process of a rank that is making steps."""
    children = find_children(pid)
    return next((each for each in children if find_name(each) == "ray::RankWorker.advance"), None)


def run_disturbed(folder: Path, kind: str) -> Stage:
    """Run the call, disturb it after its first commits, and wait for its end."""
    before = count_commits(folder)
    with start_rushes(*CALL, cwd=folder) as run:

        def has_committed() -> bool:
            assert run.poll() is None, run.communicate()
            return count_commits(folder) > before

        wait_until(has_committed, RUN_S, f"a commit before the {kind}")
        started = find_children(run.pid)
        agents = [each for each in started if find_name(each) in RAYS_AGENTS]
        started = [each for each in started if each not in agents]
        if kind == "kill":
            run.kill()
        elif kind == "interrupt":
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does, to all of the group
        else:
            end_process(wait_until(lambda: find_rank(run.pid), RUN_S, "a rank that makes steps"))
        shown = run.communicate(timeout=RUN_S)
        try:
            wait_until(lambda: not any(map(is_alive, started)), GONE_S, "Ray's end")
            left: list[str] = []
        except AssertionError:
            left = [str(each) for each in started if is_alive(each)]
        for each in agents + started:
            end_process(each)
        return read_stage(folder, run.returncode, shown, left)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_table(folder / "ads.parquet", prompt=[f"ball number {n}" for n in range(NUM_CLIPS)])
    return folder


@pytest.fixture(scope="module")
def killed(folder: Path) -> Stage:
    return run_disturbed(folder, "kill")


@pytest.fixture(scope="module")
def interrupted(folder: Path, killed: Stage) -> Stage:
    return run_disturbed(folder, "interrupt")


@pytest.fixture(scope="module")
def lost_a_rank(folder: Path, interrupted: Stage) -> Stage:
    return run_disturbed(folder, "loss of a rank")


def check_kept(before: Stage, after: Stage) -> None:
    """Check that all that was committed before is as it was, by content and by time."""
    assert {key: after.commits[key] for key in before.commits} == before.commits
    kept = {
        path: written
        for path, written in before.files.items()
        if any(clip_id in path for clip_id in before.commits)
    }
    assert {path: after.files[path] for path in kept} == kept
    assert len(after.commits) > len(before.commits)


def test_a_killed_run_leaves_commits_that_hold_and_no_processes(killed: Stage) -> None:
    assert killed.returncode == -signal.SIGKILL
    assert 1 <= len(killed.commits) < NUM_CLIPS
    assert killed.left == []


def test_an_interrupted_run_stops_cleanly(folder: Path, interrupted: Stage) -> None:
    assert interrupted.returncode == ExitCode.INTERRUPTED
    assert interrupted.stderr == ""
    assert "Interrupted. The same command goes on from here." in interrupted.stdout
    assert len(interrupted.commits) < NUM_CLIPS
    assert f"remaining  {NUM_CLIPS - len(interrupted.commits)} rows" in interrupted.stdout
    assert interrupted.left == []


def test_the_run_after_a_kill_goes_on(killed: Stage, interrupted: Stage) -> None:
    assert f"{len(killed.commits)} done before" in interrupted.stdout
    check_kept(killed, interrupted)


def test_the_run_after_an_interrupt_ends_it_all(
    folder: Path, interrupted: Stage, lost_a_rank: Stage
) -> None:
    assert lost_a_rank.returncode == ExitCode.OK, lost_a_rank.stderr
    assert lost_a_rank.left == []
    check_kept(interrupted, lost_a_rank)
    assert len(lost_a_rank.commits) == NUM_CLIPS
    for commit in lost_a_rank.commits.values():
        assert len(read_frames(folder / "out" / commit.video.key)) == NUM_FRAMES
    assert (folder / "out" / "_SUCCESS").exists()
    assert len(list((folder / "out" / "work").iterdir())) <= 1  # the killed run's


def test_a_lost_rank_costs_its_clip_one_attempt(
    folder: Path, interrupted: Stage, lost_a_rank: Stage
) -> None:
    new = lost_a_rank.commits.keys() - interrupted.commits.keys()
    attempts = sorted(lost_a_rank.commits[key].attempts for key in new)
    assert attempts == [1] * (len(new) - 1) + [2]
    assert Ledger(ObjectStore(folder / "out")).failed_ids() == set()
