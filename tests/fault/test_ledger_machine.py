"""Runs that start, commit, race, fail, crash and are taken over, in any order, against a model."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from jobs.clean import clean_output
from pipeline.checkpoints import Checkpoints
from pipeline.documents import CommitDraft
from pipeline.errors import LeaseLostError
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.manifest import write_manifest
from pipeline.store import ObjectStore
from tests.support.crashing import Crash
from tests.support.night import CLIPS, MODEL, commit, final_state
from tests.support.outputs import IDENTITY, draft, failure, plan_rows

LIMIT_S = 0.002
"""Every holder is soon taken over: a new run's start is the old one's end."""
clips = st.sampled_from(CLIPS)


class HookedStore(ObjectStore):
    """A store that lets something happen just before, or after, a commit is created."""

    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    def create(self, key: str, data: bytes) -> None:
        before, after = self.before, self.after
        if key.startswith("commits/"):
            self.before = self.after = None
            if before:
                before()
        super().create(key, data)
        if key.startswith("commits/") and after:
            after()


@dataclass(frozen=True)
class Run:
    """A run that holds, or held, the lease."""

    lease: Lease
    store: HookedStore
    ledger: Ledger
    saves: Checkpoints


class LedgerMachine(RuleBasedStateMachine):
    """The model: who holds the lease, which attempt won each clip, what failed, what is saved."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(prefix="rushes-test-")
        self.uri = f"memory://{uuid.uuid4().hex}"
        self.winners: dict[str, str] = {}
        self.failed = set[str]()
        self.saved: dict[str, int] = {}
        self.epoch = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize()
    def open(self) -> None:
        Ledger(ObjectStore(self.uri)).open_output(IDENTITY)

    @rule(target=runs)
    def start(self) -> Run:
        """A run takes over from whoever there was."""
        store = HookedStore(self.uri)
        lease = Lease.acquire(store, LIMIT_S)
        self.epoch += 1
        assert lease.epoch == self.epoch
        run = Run(lease, store, Ledger(store, lease.epoch), Checkpoints(store, MODEL, lease.epoch))
        run.ledger.save_rows("ads", plan_rows(*((clip_id, None) for clip_id in CLIPS)))
        return run

    def holds(self, run: Run) -> bool:
        return run.lease.epoch == self.epoch

    def commit(self, run: Run, each: CommitDraft) -> None:
        commit(run.ledger, each, final_state(each.clip_id), Path(self.folder.name))

    @rule(run=runs, clip_id=clips, twice=st.booleans())
    def commit_clip(self, run: Run, clip_id: str, twice: bool) -> None:
        """A run commits; a second time where it had no answer to the first."""
        each = draft(clip_id)
        for _ in range(1 + twice):
            if self.holds(run):
                self.commit(run, each)
                self.winners.setdefault(clip_id, each.attempt)
                self.saved.pop(clip_id, None)
                run.saves.discard(clip_id)
            else:
                with pytest.raises(LeaseLostError):
                    self.commit(run, each)

    @rule(run=runs, clip_id=clips)
    def lose_a_race(self, run: Run, clip_id: str) -> None:
        """Another attempt of the same run commits between a check and its create."""
        if not self.holds(run) or clip_id in self.winners:
            return
        first = draft(clip_id)
        run.store.before = lambda: self.commit(run, first)
        self.commit(run, draft(clip_id))
        self.winners[clip_id] = first.attempt

    @rule(run=runs, clip_id=clips, after=st.booleans())
    def crash_in_commit(self, run: Run, clip_id: str, after: bool) -> None:
        """The process dies just before its commit is created, or just after."""
        if not self.holds(run):
            return

        def crash() -> None:
            raise Crash

        setattr(run.store, "after" if after else "before", crash)
        each = draft(clip_id)
        if after and clip_id in self.winners:
            run.store.after = None
            return
        with pytest.raises(Crash):
            self.commit(run, each)
        run.store.before = run.store.after = None
        if after:
            self.winners[clip_id] = each.attempt

    @rule(target=runs, run=runs, clip_id=clips)
    def taken_over_on_the_way(self, run: Run, clip_id: str) -> Run:
        """A run falls asleep after its last check: the create that lands is one attempt's too."""
        each = draft(clip_id)
        if not self.holds(run) or clip_id in self.winners:
            return self.start()
        taken: list[Run] = []
        run.store.before = lambda: taken.append(self.start())
        self.commit(run, each)
        self.winners[clip_id] = each.attempt
        with pytest.raises(LeaseLostError):
            self.commit(run, draft(clip_id))
        return taken[0]

    @rule(run=runs, clip_id=clips)
    def fail(self, run: Run, clip_id: str) -> None:
        if self.holds(run):
            run.ledger.record_failure(failure(clip_id))
            self.failed.add(clip_id)
        else:
            with pytest.raises(LeaseLostError):
                run.ledger.record_failure(failure(clip_id))

    @rule(run=runs, clip_id=clips, steps=st.integers(1, 9))
    def save(self, run: Run, clip_id: str, steps: int) -> None:
        """A run goes on from what is saved, and saves that."""
        step = self.saved.get(clip_id, 0) + steps
        if self.holds(run):
            run.saves.save(clip_id, "snapshot", step, bytes([step]))
            self.saved[clip_id] = step
        else:
            with pytest.raises(LeaseLostError):
                run.saves.save(clip_id, "snapshot", step, bytes([step]))

    @rule(run=runs)
    def write(self, run: Run) -> None:
        if self.holds(run):
            write_manifest(run.ledger)
            self.check_manifest()
        else:
            with pytest.raises(LeaseLostError):
                write_manifest(run.ledger)

    @rule()
    def clean(self) -> None:
        if self.epoch:
            clean_output(self.uri, remove=True, unfinished=False, say=lambda _: None)
            self.epoch += 1
            self.saved = {key: n for key, n in self.saved.items() if key not in self.winners}
            store = ObjectStore(self.uri)
            files = {key.rpartition("/")[2].partition(".")[0] for key in store.list("clips")}
            assert files == set(self.winners.values())

    def check_manifest(self) -> None:
        ledger = Ledger(ObjectStore(self.uri))
        (key,) = ledger.store.list("manifest")
        rows = ledger.read_table(key).to_pylist()
        shown = {row["clip_id"]: (row["status"], row["attempt"]) for row in rows}
        for clip_id in CLIPS:
            status, attempt = shown[clip_id]
            if clip_id in self.winners:
                assert (status, attempt) == ("committed", self.winners[clip_id])
            else:
                assert status == ("failed" if clip_id in self.failed else "remaining")

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not self.epoch:
            return
        ledger = Ledger(ObjectStore(self.uri))
        commits = {each.clip_id: each for each in ledger.read_commits()}
        assert {key: each.attempt for key, each in commits.items()} == self.winners
        for clip_id, each in commits.items():
            assert ledger.store.read(each.video.key) == final_state(clip_id)
            assert ledger.store.checksum(each.poster.key)[0] == each.poster.sha256
        status = ledger.status()
        lost = self.failed - self.winners.keys()
        counts = (status.committed, status.failed, status.remaining)
        left = len(CLIPS) - len(commits) - len(lost)
        assert counts == (len(commits), len(lost), left)

    @invariant()
    def what_is_saved_is_found(self) -> None:
        saves = Checkpoints(ObjectStore(self.uri), MODEL)
        for clip_id, step in self.saved.items():
            found = saves.load(clip_id, pytest.fail)
            assert found is not None
            assert (found[0].step, found[1]) == (step, bytes([step]))


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestLedger = LedgerMachine.TestCase
