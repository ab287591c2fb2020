"""A run that is killed, interrupted, stopped, left or loses processes: nothing lost, nothing twice.

Five runs of one call, each disturbed in another way once it has committed something new.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from jobs.cli import ExitCode
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Commit
from pipeline.lease import LeaseRecord, read_lease
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.probe import read_frames
from pipeline.runs import read_runs
from pipeline.store import ObjectStore
from tests.support.command import (
    ONE_GANG,
    end_process,
    find_children,
    find_name,
    find_named,
    is_alive,
    rushes,
    start_rushes,
    wait_until,
    write_table,
)

pytestmark = pytest.mark.timeout(600)

NUM_CLIPS = 14
NUM_FRAMES = 17
STEPS = 32
RUN_S = 300.0
"""The longest wait for a run to get somewhere on a machine that is busy with other things."""
GONE_S = 30.0
RANK = "ray::RankWorker.advance"
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They look for their raylet once a minute, and end when it is gone."""
RECIPE = (f"request.num_inference_steps={STEPS}", "checkpoint.every_s=0.5", "lease.limit_s=20")
CALL = ("render", "ads.parquet", "-o", "out", *ONE_GANG, *(f"--set={each}" for each in RECIPE))
LOST = ("ray::GangPool", "ray::MapWorker(Map(_Publish", "ray::MapWorker(Map(_Denoise", RANK)
"""What the last run loses, one after another, each after another commit."""


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
    saved: set[str]
    """Clips of which unfinished work is kept."""
    lease: LeaseRecord | None


def read_stage(folder: Path, code: int, shown: tuple[str, str], left: list[str]) -> Stage:
    ledger = Ledger(ObjectStore(folder / "out"))
    files = {str(path): path.stat().st_mtime_ns for path in (folder / "out").glob("c*/*/**/*.*")}
    commits = {each.clip_id: each for each in ledger.read_commits()}
    saved = Checkpoints(ledger.store, "").clip_ids()
    return Stage(code, *shown, commits, files, left, saved, read_lease(ledger.store))


def count_commits(folder: Path) -> int:
    return len(list((folder / "out" / "commits").glob("*/*.json")))


def run_disturbed(folder: Path, kind: str) -> Stage:
    """Run the call, disturb it after its first commits, and wait for its end."""
    before = count_commits(folder)
    with start_rushes(*CALL, cwd=folder) as run:

        def has_committed(number: int = 1) -> bool:
            assert run.poll() is None, run.communicate()
            return count_commits(folder) >= before + number

        wait_until(has_committed, RUN_S, f"a commit before the {kind}")
        started = find_children(run.pid)
        agents = [each for each in started if find_name(each) in RAYS_AGENTS]
        started = [each for each in started if each not in agents]
        if kind == "kill":
            run.kill()
        elif kind == "interrupt":
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does, to all of the group
        elif kind == "stop":
            os.killpg(run.pid, signal.SIGTERM)  # as `timeout` does, to all of the group
        elif kind == "hangup":
            os.killpg(run.pid, signal.SIGHUP)  # as a terminal does that is closed
        else:
            for number, name in enumerate(LOST, start=1):
                wait_until(partial(has_committed, number), RUN_S, f"{number} commits")
                end_process(wait_until(partial(find_named, run.pid, name), RUN_S, name))
        shown = run.communicate(timeout=RUN_S)
        try:
            wait_until(lambda: not any(map(is_alive, started)), GONE_S, "Ray's end")
            left: list[str] = []
        except AssertionError:
            left = [str(each) for each in started if is_alive(each)]
        for each in agents + started:
            end_process(each)
        return read_stage(folder, run.returncode, shown, left)


@pytest.fixture(scope="module", autouse=True)
def hangups_heard() -> Iterator[None]:
    """What is ignored here, as under nohup, would be in the runs, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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
def stopped(folder: Path, interrupted: Stage) -> Stage:
    return run_disturbed(folder, "stop")


@pytest.fixture(scope="module")
def left(folder: Path, stopped: Stage) -> Stage:
    return run_disturbed(folder, "hangup")


@pytest.fixture(scope="module")
def last(folder: Path, left: Stage) -> Stage:
    return run_disturbed(folder, "losses")


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


def test_a_stopped_run_saves_what_it_had_begun_and_gives_the_lease_back(
    interrupted: Stage, stopped: Stage, left: Stage
) -> None:
    for before, after in ((interrupted, stopped), (stopped, left)):
        assert after.returncode == ExitCode.STOPPED, after.stderr
        assert "Stopped. The same command goes on from here." in after.stdout
        check_kept(before, after)
        assert after.left == []
    for each in (interrupted, stopped, left):
        assert each.saved
        assert not each.saved & each.commits.keys()
        assert each.lease is not None
        assert each.lease.released
    assert left.lease is not None
    assert left.lease.epoch == 4


def test_the_last_run_ends_it_all_though_it_loses_the_pool_a_client_and_more(
    folder: Path, left: Stage, last: Stage
) -> None:
    assert last.returncode == ExitCode.OK, last.stderr
    assert last.left == []
    check_kept(left, last)
    assert len(last.commits) == NUM_CLIPS
    assert last.saved == set()
    for commit in last.commits.values():
        assert len(read_frames(folder / "out" / commit.video.key)) == NUM_FRAMES
    assert (folder / "out" / "_SUCCESS").exists()
    assert Ledger(ObjectStore(folder / "out")).failed_ids() == set()
    assert "gang lost" in last.stdout
    assert "(raylet)" not in last.stdout


def test_what_was_gone_on_from_is_as_if_made_in_one_go(
    tmp_path: Path, left: Stage, last: Stage
) -> None:
    recipe = find_recipe(overrides=RECIPE)
    alone = Ledger(ObjectStore(tmp_path))
    for clip_id in left.saved:
        commit = last.commits[clip_id]
        runner = LocalRunner(recipe, commit.model_fingerprint, alone)
        made = runner.render(clip_id, commit.request)
        assert isinstance(made, Commit)
        assert made.video.sha256 == commit.video.sha256


def test_every_run_has_left_a_record_of_how_it_ended(folder: Path, last: Stage) -> None:
    runs = read_runs(ObjectStore(folder / "out"))
    assert [(run.epoch, run.ended) for run in runs] == [
        (1, None), (2, "Ctrl-C"), (3, "SIGTERM"), (4, "SIGHUP"), (5, "done"),
    ]  # fmt: skip
    assert [run.clips for run in runs] == sorted((run.clips for run in runs), reverse=True)
    assert all(run.device_seconds > 0 for run in runs[1:])
    assert runs[-1].gangs_lost >= 1
    assert runs[-1].committed == runs[-1].clips


def test_what_the_killed_run_left_is_cleaned(folder: Path, last: Stage) -> None:
    done = rushes("clean", "out", "--yes", cwd=folder)
    assert done.returncode == ExitCode.OK, done.stderr
    store = ObjectStore(folder / "out")
    named = {each.key for commit in last.commits.values() for each in (commit.video, commit.poster)}
    assert set(store.list("clips")) == named
    assert list(store.list("work")) == []
    assert list(store.list_unfinished()) == []
