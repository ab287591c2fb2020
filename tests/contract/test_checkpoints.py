"""What is saved of a clip is gone on from if it is whole and of this model, on every store."""

from __future__ import annotations

import pickle

import pytest

from pipeline.checkpoints import FOLDER, Checkpoints
from pipeline.errors import LeaseLostError
from pipeline.identity import digest
from pipeline.lease import Lease
from pipeline.store import ObjectStore

A, B = (digest(name) for name in "ab")
MODEL, OTHER = "f" * 64, "e" * 64


@pytest.fixture
def checkpoints(store: ObjectStore) -> Checkpoints:
    return Checkpoints(store, MODEL)


@pytest.fixture
def warnings() -> list[str]:
    return []


def test_the_last_save_is_what_is_loaded(checkpoints: Checkpoints, warnings: list[str]) -> None:
    assert checkpoints.load(A, warnings.append) is None
    checkpoints.save(A, "snapshot", 4, b"four", layout="tensor=2", device_seconds=1.5)
    saved = checkpoints.save(A, "snapshot", 8, b"eight", layout="tensor=2", device_seconds=3.0)
    again = pickle.loads(pickle.dumps(checkpoints))
    assert again.load(A, warnings.append) == (saved, b"eight")
    assert (saved.step, saved.layout, saved.device_seconds) == (8, "tensor=2", 3.0)
    assert again.clip_ids() == {A}
    assert again.load(B, warnings.append) is None
    assert not warnings


def test_a_save_of_a_version_that_kept_fewer_numbers_is_loaded(
    checkpoints: Checkpoints, warnings: list[str]
) -> None:
    saved = checkpoints.save(A, "latents", 8, b"latents", device_seconds=3.0, denoise_s=1.5)
    key = saved.payload.key.replace(".safetensors", ".json")
    document = saved.model_dump_json(exclude={"denoise_s"})
    checkpoints.store.put(key, document.encode())
    before = saved.model_copy(update={"denoise_s": 0.0})
    assert checkpoints.load(A, warnings.append) == (before, b"latents")
    assert not warnings


def test_two_saves_are_kept(checkpoints: Checkpoints) -> None:
    for step in (4, 8, 12):
        saved = checkpoints.save(A, "snapshot", step, b"latents")
    kept = list(checkpoints.store.list(FOLDER))
    assert len(kept) == 4, "the last one and the one before it"
    checkpoints.store.delete(saved.payload.key)
    loaded = checkpoints.load(A, print)
    assert loaded is not None
    assert loaded[0].step == 8


def test_latents_count_for_more_than_any_snapshot(
    checkpoints: Checkpoints, warnings: list[str]
) -> None:
    keep = Checkpoints(ObjectStore(checkpoints.store.uri), MODEL)
    keep.save(A, "latents", 8, b"latents")
    copied = {key: checkpoints.store.read(key) for key in checkpoints.store.list(FOLDER)}
    keep.save(A, "snapshot", 9, b"nine")
    for key, content in copied.items():
        checkpoints.store.put(key, content)
    loaded = checkpoints.load(A, warnings.append)
    assert loaded is not None
    assert loaded[1] == b"latents"


def test_what_is_committed_is_discarded(checkpoints: Checkpoints, warnings: list[str]) -> None:
    for clip_id in (A, B):
        checkpoints.save(clip_id, "latents", 8, b"latents")
    checkpoints.discard(A)
    assert checkpoints.clip_ids() == {B}
    assert checkpoints.load(A, warnings.append) is None
    checkpoints.discard(A)


@pytest.mark.parametrize("damage", [b"", b"newe", b"newest!", b"nevest"])
def test_a_damaged_one_is_passed_over_for_the_one_before(
    checkpoints: Checkpoints, warnings: list[str], damage: bytes
) -> None:
    before = checkpoints.save(A, "snapshot", 4, b"before")
    newest = checkpoints.save(A, "snapshot", 8, b"newest")
    if damage:
        checkpoints.store.put(newest.payload.key, damage)
    else:
        checkpoints.store.delete(newest.payload.key)
    assert checkpoints.load(A, warnings.append) == (before, b"before")
    assert len(warnings) == 1
    assert newest.payload.key in warnings[0]


@pytest.mark.parametrize("document", [b"{}", b"not JSON", b'{"clip_id": 3}'])
def test_a_damaged_document_is_passed_over(
    checkpoints: Checkpoints, warnings: list[str], document: bytes
) -> None:
    saved = checkpoints.save(A, "snapshot", 4, b"four")
    checkpoints.store.put(saved.payload.key.replace(".safetensors", ".json"), document)
    assert checkpoints.load(A, warnings.append) is None
    assert "passed over" in warnings[0]


def test_a_payload_without_its_document_is_no_checkpoint(
    checkpoints: Checkpoints, warnings: list[str]
) -> None:
    """As where a save was cut off in the middle."""
    saved = checkpoints.save(A, "snapshot", 4, b"four")
    checkpoints.store.delete(saved.payload.key.replace(".safetensors", ".json"))
    assert checkpoints.clip_ids() == set()
    assert checkpoints.load(A, warnings.append) is None
    assert not warnings
    checkpoints.save(A, "snapshot", 8, b"eight")
    assert len(list(checkpoints.store.list(FOLDER))) == 2, "the next save clears it away"


def test_another_models_is_passed_over(checkpoints: Checkpoints, warnings: list[str]) -> None:
    Checkpoints(checkpoints.store, OTHER).save(A, "latents", 8, b"latents")
    assert checkpoints.load(A, warnings.append) is None
    assert OTHER in warnings[0]


def test_who_was_taken_over_saves_nothing(checkpoints: Checkpoints) -> None:
    store = checkpoints.store
    old = Lease.acquire(store, 60)
    mine = Checkpoints(store, MODEL, old.epoch)
    mine.save(A, "snapshot", 4, b"four")
    old.release()
    Lease.acquire(store, 60)
    before = sorted(store.list(FOLDER))
    with pytest.raises(LeaseLostError):
        mine.save(A, "snapshot", 8, b"eight")
    assert sorted(store.list(FOLDER)) == before
