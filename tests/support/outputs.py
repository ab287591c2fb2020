"""Small documents of an output, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline.columns import ROW_COLUMNS
from pipeline.documents import CommitDraft, Failure, OutputIdentity, new_attempt
from pipeline.identity import digest
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

IDENTITY = OutputIdentity(
    model="tiny", model_fingerprint="f" * 64, finish={"codec": "h264", "crf": 18}, recipe="tiny-cpu"
)
A, B, C, D = (digest(name) for name in "abcd")


def draft(clip_id: str) -> CommitDraft:
    request = RenderRequest(
        prompt="a red bottle",
        width=64,
        height=64,
        num_frames=17,
        fps=8.0,
        seed=1,
        num_inference_steps=4,
        guidance_scale=4.0,
    )
    return CommitDraft(
        clip_id=clip_id,
        attempt=new_attempt(),
        request=request,
        width=64,
        height=64,
        num_frames=17,
        fps=8.0,
        duration_s=17 / 8,
        model="tiny",
        model_fingerprint="f" * 64,
        layout="1",
        gang="cpu",
        timings={"encode": 0.1, "denoise": 1.5, "develop": 0.2},
        device_seconds=1.5,
    )


def failure(clip_id: str, reason: str = "out of memory") -> Failure:
    return Failure(
        clip_id=clip_id,
        attempt=new_attempt(),
        stage="denoise",
        reason=reason,
        chain=("rank 0 died", reason),
        attempts=2,
    )


def plan_rows(*rows: tuple[str | None, str | None]) -> pa.Table:
    columns: dict[str, Any] = {name: [None] * len(rows) for name in ROW_COLUMNS}
    columns["row"] = list(range(len(rows)))
    columns["clip_id"] = pa.array([clip_id for clip_id, _ in rows], pa.string())
    columns["reject"] = pa.array([reject for _, reject in rows], pa.string())
    return pa.table({**columns, "locale": ["de"] * len(rows)})


def lose_replies(patch: pytest.MonkeyPatch) -> None:
    """Have every create done and then tried again, as where the reply to the first was lost."""
    create = ObjectStore.create

    def create_twice(self: ObjectStore, key: str, data: bytes) -> None:
        create(self, key, data)
        create(self, key, data)

    patch.setattr(ObjectStore, "create", create_twice)
