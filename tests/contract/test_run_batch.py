"""The batch as Ray Data runs it, with a pool that answers at once: its passes, and its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from cluster.batch import make_work, run_batch
from cluster.client import PoolClient
from cluster.stages import RenderSpec
from jobs.recipes import find_recipe
from jobs.render import render_tables
from jobs.run import RunBrokenError
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser
from pipeline.documents import Commit, Failure
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.ledger import Ledger
from pipeline.model import resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.command import write_table
from tests.support.pools import Clip, PuttingOff, make_clip
from tests.support.reporters import Silent

RECIPE = find_recipe(overrides=["gangs.0.count=1"])
NUM_ROWS = 12

Batch = Callable[[], Generator[Commit | Failure]]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    torch.set_num_threads(1)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    return [make_clip(name, 2, Encoder(graph), Denoiser(graph)) for name in ("late", "soon")]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Where readers of URIs would see a query, a fragment, an escape or a pattern."""
    return Ledger(ObjectStore(tmp_path / "why?so #1 %41 [x]\tü"))


@pytest.fixture
def batch(ray_cluster: None, clips: list[Clip], ledger: Ledger) -> Iterator[Batch]:
    """Two clips' batch, the first of which the pool puts off."""
    ledger.put_table("work/a.parquet", make_work({clip.key: clip.request for clip in clips}))
    latents = {clip.key: clip.latents for clip in clips}
    actor = ray.remote(PuttingOff).remote(latents, put_off=clips[0].key)
    pool = PoolClient(actor, Checkpoints(ledger.store, "f" * 64))
    yield lambda: run_batch(RenderSpec(RECIPE, "f" * 64), ledger, pool, "work/a.parquet")
    ray.kill(actor)


def find_executors() -> list[StreamingExecutor]:
    """Return what Ray Data runs in this process."""
    return [each for each in threading.enumerate() if isinstance(each, StreamingExecutor)]


def test_a_clip_that_is_put_off_is_asked_for_again(
    batch: Batch, clips: list[Clip], ledger: Ledger
) -> None:
    late, soon = (clip.key for clip in clips)
    assert [end.clip_id for end in batch()] == [soon, late]
    assert ledger.committed_ids() == {soon, late}


def test_ctrl_c_between_two_lines_of_ray_data_leaves_nothing_running(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_running = list[StreamingExecutor]()

    def press(executor: StreamingExecutor) -> None:
        if not was_running:
            was_running.append(executor)
            raise KeyboardInterrupt

    monkeypatch.setattr(StreamingExecutor, "get_stats", press)  # called with the first block
    with pytest.raises(KeyboardInterrupt) as held:
        list(batch())
    (executor,) = was_running
    assert held.tb is not None  # and with it the last reference to Ray Data's iterator
    assert executor._shutdown
    assert not find_executors()


def write_rows(folder: Path, number: int) -> str:
    """Write a table of clips that are quickly made."""
    sizes = dict.fromkeys(("width", "height"), [32] * number)
    prompts = [f"a red ball, take {each}" for each in range(number)]
    return write_table(folder / "ads.parquet", prompt=prompts, num_frames=[5] * number, **sizes)


class Pressing(Silent):
    """A reporter during whose first line somebody presses Ctrl-C."""

    def ended(self, outcome: object) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_between_two_clips_ends_ray_data_before_the_pool_is_left(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list[list[StreamingExecutor]]()
    leave = PoolClient.leave

    def look_and_leave(client: PoolClient) -> object:
        left.append(find_executors())
        return leave(client)

    monkeypatch.setattr(PoolClient, "leave", look_and_leave)
    sizes = dict.fromkeys(("width", "height"), [32] * NUM_ROWS)
    prompts = [f"a red ball, take {number}" for number in range(NUM_ROWS)]
    table = write_table(
        tmp_path / "ads.parquet", prompt=prompts, num_frames=[5] * NUM_ROWS, **sizes
    )
    result = render_tables([table], str(tmp_path / "out"), RECIPE, Pressing())
    assert result.ended_by == "Ctrl-C"
    assert result.status.committed < NUM_ROWS
    assert left == [[]]


def test_a_run_of_which_a_clip_comes_to_no_end_is_broken(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_first(*given: Any) -> Generator[Commit | Failure]:
        ends = run_batch(*given)
        next(ends)
        yield from ends

    monkeypatch.setattr("cluster.batch.run_batch", lose_first)
    table = write_rows(tmp_path, 2)
    with pytest.raises(RunBrokenError, match="of 1 clips nobody knows what became"):
        render_tables([table], str(tmp_path / "out"), RECIPE, Silent())
