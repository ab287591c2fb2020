"""A run that dies at any write to the store, just before it or just after, and is called again.

Every write there is, one after another: before and after an upload, between upload and commit,
after the commit before anybody knows, in a save, in the manifest, in a sign of life.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.clean import clean_output
from pipeline.ledger import Ledger
from pipeline.places import TEMPORARY
from pipeline.store import ObjectStore
from tests.support.crashing import Crash, CrashingStore
from tests.support.night import CLIPS, SAVE_EVERY, STEPS, check_night, run_night


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where outputs go: an empty place for each name that is appended."""
    return str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"


def list_writes(place: str, folder: Path) -> list[str]:
    """Return the writes of an undisturbed run, in order."""
    store = CrashingStore(f"{place}/undisturbed")
    run_night(store, folder, Counter())
    check_night(store)
    return store.writes


def name(write: str) -> str:
    """Return a write's kind: its verb and its folder or file."""
    verb, _, key = write.partition(" ")
    suffix = ".mp4" if key.endswith(".mp4") else ""
    return f"{verb} {key.split('/')[0]}{suffix}"


def test_every_kind_of_write_is_a_crash_point(place: str, tmp_path: Path) -> None:
    kinds = [name(each) for each in list_writes(place, tmp_path) if TEMPORARY not in each]
    assert kinds.index("put _SUCCESS") > max(
        at for at, kind in enumerate(kinds) if kind in ("put manifest", "put index.html")
    )
    assert set(kinds) == {
        "create run.json", "create lease", "put lease", "delete _SUCCESS", "put rows",
        "delete rejects", "put checkpoints", "delete checkpoints", "put clips.mp4", "put clips",
        "create commits", "put manifest", "put index.html", "put _SUCCESS",
    }  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_write_loses_nothing(place: str, tmp_path: Path, after: bool) -> None:
    for at, write in enumerate(list_writes(place, tmp_path)):
        output = f"{place}/{at}"
        made = Counter[str]()
        store = CrashingStore(output, at, after=after)
        with pytest.raises(Crash):
            run_night(store, tmp_path, made)
        committed = {each.clip_id: each for each in Ledger(ObjectStore(output)).read_commits()}
        run_night(ObjectStore(output), tmp_path, made)
        try:
            check_night(ObjectStore(output))
            now = {each.clip_id: each for each in Ledger(ObjectStore(output)).read_commits()}
            assert {key: now[key] for key in committed} == committed, "a commit never changes"
            assert made.total() <= len(CLIPS) * STEPS + SAVE_EVERY, "work done again"
            check_clean(output)
        except AssertionError as error:
            raise AssertionError(f"crash at write {at}: {write}: {error}") from error


def test_a_crash_in_the_run_after_a_crash(tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}"
    for at in range(0, len(list_writes(place, tmp_path)), 2):
        output = f"{place}/twice{at}"
        made = Counter[str]()
        for again in (at, at // 2):
            with suppress(Crash):  # the second run may have less to write
                run_night(CrashingStore(output, again, after=bool(at % 4)), tmp_path, made)
        run_night(ObjectStore(output), tmp_path, made)
        check_night(ObjectStore(output))
        check_clean(output)


def check_clean(output: str) -> None:
    """Check that all that a crash left is found as garbage, and nothing that is named."""
    clean_output(output, remove=True, unfinished=False, say=lambda _: None)
    store = ObjectStore(output)
    named = {
        each.key
        for commit in Ledger(store).read_commits()
        for each in (commit.video, commit.poster)
    }
    assert set(store.list("clips")) == named
    left = [key for key in store.list() if re.match(r"checkpoints|work", key)]
    assert left == []
    assert list(store.list_unfinished()) == []
