"""A batch's row that comes again once its clip is committed costs no gang another rendering."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from ray.exceptions import RayError

from cluster.answers import Rendered
from cluster.client import PoolClient
from cluster.stages import Publish, RenderSpec, Row, denoise_once
from jobs.recipes import find_recipe
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.outputs import A, B, draft, failure

pytestmark = pytest.mark.usefixtures("one_thread")


class AskedError(Exception):
    """The pool was."""


class AskedPool:
    def render(self, *_: Any, **__: Any) -> Any:
        raise AskedError


class ForgetfulPool(AskedPool):
    """The latents of its first answer are lost."""

    def __init__(self) -> None:
        self.answers = [Rendered([lose()], (), "single-0", "", 1, 0.0, 0.0)]

    async def render(self, *_: Any, **__: Any) -> Rendered:
        return self.answers.pop() if self.answers else super().render()


async def lose() -> bytes:
    raise RayError("lost")


POOL = cast(PoolClient, AskedPool())


def test_its_commit_is_its_outcome_and_no_gang_is_asked(store: ObjectStore, tmp_path: Path) -> None:
    ledger = Ledger(store)
    for name in ("one.mp4", "one.jpg"):
        (tmp_path / name).write_bytes(b"content")
    commit = ledger.commit_clip(draft(A), tmp_path / "one.mp4", tmp_path / "one.jpg")
    request = commit.request.model_dump_json()
    publish = Publish(RenderSpec(find_recipe(), "0" * 64))
    for failed in ("", failure(A).model_dump_json()):
        row: Row = {
            "clip_id": A,
            "request": request,
            "payload": b"conditioning",
            "record": "{}",
            "put_off": False,
        }
        done = publish.publish(
            asyncio.run(denoise_once(POOL, {**row, "failure": failed}, ledger)), ledger
        )
        assert done["failed"] is False
        assert Commit.model_validate_json(done["outcome"]) == commit
    assert not ledger.failed_ids()


def test_another_goes_to_the_pool(store: ObjectStore) -> None:
    request = draft(B).request.model_dump_json()
    row = {"clip_id": B, "request": request, "payload": b"c", "record": "{}", "failure": ""}
    for pool in (POOL, cast(PoolClient, ForgetfulPool())):
        with pytest.raises(AskedError) as asked:
            asyncio.run(denoise_once(pool, row, Ledger(store)))
        assert asked.value.__context__ is None, "told as if it came of what went before"
