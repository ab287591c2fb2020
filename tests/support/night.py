"""A night's traffic with the store, without a model: what a run takes, saves, commits, writes.

The lease, the saved states, the commits and the manifest are the product's own. Only the clip is a
stand-in: a chain of hashes, a link a step, so that a step left out or made twice in a row shows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from jobs.results import write_results
from pipeline.checkpoints import Checkpoints
from pipeline.documents import CommitDraft, new_attempt
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.outputs import IDENTITY, A, B, C, draft, plan_rows

MODEL = IDENTITY.model_fingerprint
CLIPS = (A, B, C)
STEPS = 5
SAVE_EVERY = 2
LIMIT_S = 0.02
"""A crashed run's lease is soon taken over."""


def link(state: bytes, clip_id: str) -> bytes:
    """Return a clip's state one step later."""
    return hashlib.sha256(state + clip_id.encode()).digest()


def final_state(clip_id: str) -> bytes:
    """Return what an undisturbed run makes of a clip."""
    state = b""
    for _ in range(STEPS):
        state = link(state, clip_id)
    return state


def run_night(
    store: ObjectStore, folder: Path, made: Counter[str], clips: tuple[str, ...] = CLIPS
) -> None:
    """Bring every clip to its commit, and write down what became of each; `made` counts steps."""
    Ledger(store).open_output(IDENTITY)
    lease = Lease.acquire(store, LIMIT_S)
    ledger = Ledger(store, lease.epoch)
    saves = Checkpoints(store, MODEL, lease.epoch)
    done, saved = ledger.committed_ids(), saves.clip_ids()
    ledger.save_rows("ads", plan_rows(*((clip_id, None) for clip_id in clips)))
    for clip_id in clips:
        if clip_id not in done:
            state = denoise(saves, clip_id, made, resume=clip_id in saved)
            lease.renew()
            commit(ledger, draft(clip_id), state, folder)
            saves.discard(clip_id)
    write_results(ledger)
    lease.release()


def denoise(saves: Checkpoints, clip_id: str, made: Counter[str], *, resume: bool) -> bytes:
    """Return a clip's final state, from where it was saved."""
    found = saves.load(clip_id, pytest.fail) if resume else None
    step, state = (found[0].step, found[1]) if found else (0, b"")
    if found and found[0].kind == "latents":
        return state
    while step < STEPS:
        state = link(state, clip_id)
        step += 1
        made[clip_id] += 1
        if step % SAVE_EVERY == 0 and step < STEPS:
            saves.save(clip_id, "snapshot", step, state)
    saves.save(clip_id, "latents", step, state)
    return state


def commit(ledger: Ledger, each: CommitDraft, state: bytes, folder: Path) -> None:
    """Commit a clip whose video is its final state."""
    video, poster = folder / f"{new_attempt()}.mp4", folder / "poster.jpg"
    video.write_bytes(state)
    poster.write_bytes(b"poster")
    ledger.commit_clip(each, video, poster)


def check_night(store: ObjectStore, clips: tuple[str, ...] = CLIPS) -> None:
    """Check that every clip is there once, as an undisturbed run makes it, and is accounted for."""
    ledger = Ledger(store)
    commits = list(ledger.read_commits())
    assert sorted(each.clip_id for each in commits) == sorted(clips)
    for each in commits:
        assert store.read(each.video.key) == final_state(each.clip_id)
        assert store.checksum(each.poster.key)[0] == each.poster.sha256
    status = ledger.status()
    assert (status.rows, status.committed, status.remaining) == (len(clips), len(clips), 0)
    assert store.exists("_SUCCESS")
    (manifest,) = store.list("manifest")
    rows = ledger.read_table(manifest).to_pylist()
    assert [row["status"] for row in rows] == ["committed"] * len(clips)
    assert {row["uri"] for row in rows} == {store.locate(each.video.key) for each in commits}
