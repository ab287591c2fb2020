"""A node with a folder of its own in the output's place: no gang works for it, and a line says so.

A local path on a cluster of several nodes is often that: nobody would find what is put there.
"""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import online
from cluster.batch import run_batch
from cluster.stages import RenderSpec
from jobs.recipes import find_recipe
from jobs.render import render_tables
from jobs.run import RunBrokenError
from pipeline.errors import UnseenOutputError
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import write_table
from tests.support.outputs import A, draft
from tests.support.reporters import Silent

RECIPE = find_recipe(overrides=["gangs.0.count=1"])
SPEC = RenderSpec(RECIPE, "f" * 64)
UNSEEN = "doesn't see the output .* an s3:// URI, or a folder that each of them mounts"


class Local(ObjectStore):
    """A folder that is another one in other processes, as if all of them were on another node."""

    def __init__(self, uri: str, elsewhere: Path) -> None:
        super().__init__(uri)
        self._elsewhere = elsewhere

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[Path]]:
        return ObjectStore, (self._elsewhere,)


@pytest.mark.parametrize("has_own", [False, True], ids=["empty", "an output of its own"])
def test_a_run_with_its_stages_there_breaks_before_a_clip_is_made(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_own: bool
) -> None:
    elsewhere = ObjectStore(tmp_path / "elsewhere")
    if has_own:
        Lease.acquire(elsewhere, 60).release()  # of the same epoch as the run's
    before = list(elsewhere.list())
    monkeypatch.setattr("jobs.render.ObjectStore", lambda uri: Local(uri, tmp_path / "elsewhere"))
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    with pytest.raises(RunBrokenError) as broken:
        render_tables([table], str(tmp_path / "out"), RECIPE, Silent())
    assert re.fullmatch(f".*node {socket.gethostname()} {UNSEEN}", str(broken.value))
    assert list(elsewhere.list()) == before
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    assert not ledger.committed_ids() | ledger.failed_ids()
    assert ledger.status().remaining == 1


def test_a_node_that_is_to_read_the_table_there_says_the_same(
    ray_cluster: None, tmp_path: Path
) -> None:
    ends = run_batch(SPEC, Ledger(ObjectStore(tmp_path)), cast(Any, None), "work/a.parquet")
    with pytest.raises(UnseenOutputError, match=r"there is no .*a\.parquet; .*folder"):
        next(ends)


def test_the_endpoint_asks_no_gang_for_what_it_could_not_commit(
    one_thread: None, store: ObjectStore
) -> None:
    encode: Any = cast(Any, online)._Encode(SPEC)
    row = {"clip_id": A, "request": draft(A).request.model_dump_json()}
    with pytest.raises(UnseenOutputError, match=UNSEEN):
        asyncio.run(encode(row, Ledger(store, epoch=1)))
    lease = Lease.acquire(store, 60)
    assert asyncio.run(encode(row, Ledger(store, lease.epoch)))["payload"]


def test_no_file_is_put_where_no_commit_could_be(store: ObjectStore, tmp_path: Path) -> None:
    for name in ("one.mp4", "one.jpg"):
        (tmp_path / name).write_bytes(b"content")
    with pytest.raises(UnseenOutputError, match=UNSEEN):
        Ledger(store, epoch=1).commit_clip(draft(A), tmp_path / "one.mp4", tmp_path / "one.jpg")
    assert not list(store.list())
