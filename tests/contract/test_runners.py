"""One suite over the runners: in process and on Ray, the same table makes the same output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.plan import plan_call
from jobs.recipes import find_recipe
from jobs.render import render_tables
from jobs.results import write_results
from pipeline.checkpoints import Checkpoints
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.model import resolve_checkpoint
from pipeline.probe import read_frames
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from tests.support.command import write_table
from tests.support.reporters import Silent

pytestmark = pytest.mark.timeout(600)

PROMPT = "a red ball rolls to the left on blue"
ROWS: list[dict[str, Any]] = [
    {"prompt": PROMPT},
    {"prompt": PROMPT, "width": 64, "height": 48, "num_frames": 9},
    {"prompt": f" {PROMPT} "},  # asks for the first row's clip
    {"prompt": PROMPT, "negative_prompt": "blurry", "seed": 7, "fps": 29.97, "guidance_scale": 1.0},
    {"prompt": "a green ring grows", "num_inference_steps": 1},
    {"prompt": " "},
    # Rows that the limits allow and the model refuses:
    {"prompt": PROMPT, "width": 40},
    {"prompt": PROMPT, "num_inference_steps": 8},
    {"prompt": PROMPT, "guidance_scale": 1e38},
    {"prompt": "빨간 병이 돌아요 " * 90},  # more tokens than it reads
]
REFUSED = {6: "encode", 7: "denoise", 8: "denoise", 9: "encode"}
NUM_COMMITTED, NUM_CLIPS = 5, 4
CHANGING = {
    "attempt",
    "epoch",
    "timings",
    "gang",
    "device_seconds",
    "committed_at",
    "video",
    "poster",
}
"""The fields of a commit that differ between two renders of one clip; of its files, the keys."""


def render_here(table: str, output: Path, recipe: Recipe, *, backwards: bool = False) -> None:
    """Render a table with `LocalRunner`, as `render_tables` does on Ray."""
    call = plan_call([table], recipe)
    ledger = Ledger(ObjectStore(output))
    ledger.open_output(call.identity)
    for planned in call.plan.tables:
        ledger.save_rows(planned.name, planned.rows, planned.uri)
    runner = LocalRunner(recipe, call.model_fingerprint, ledger)
    requests = list(call.remaining(set()).items())
    for clip_id, request in reversed(requests) if backwards else requests:
        runner.render(clip_id, request)
    write_results(ledger)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The embedded model with a scheduler of eight timesteps: more than a few steps break it."""
    checkpoint = tmp_path_factory.mktemp("model") / "short"
    shutil.copytree(resolve_checkpoint(find_recipe().model), checkpoint)
    config = checkpoint / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_train_timesteps": 8}))
    changes = {
        "model.checkpoint": f'"{checkpoint}"',
        "request.width": 32,
        "request.height": 32,
        "request.num_frames": 5,
        "request.num_inference_steps": 2,
        "limits.size_multiple": 8,
        "limits.max_guidance_scale": 1e39,
    }
    for each in ("gangs.0", "encode", "develop"):  # the tests' cluster has it, one process has none
        changes[f"{each}.label_selector"] = '{"rushes/group" = "tests"}'
    return find_recipe(overrides=[f"{key}={value}" for key, value in changes.items()])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    names = dict.fromkeys(name for row in ROWS for name in row)
    columns = {name: [row.get(name) for row in ROWS] for name in names}
    columns["product"] = [f"product {number}" for number in range(len(ROWS))]
    return write_table(tmp_path_factory.mktemp("table") / "ads.parquet", **columns)


@pytest.fixture(scope="module")
def oracle(recipe: Recipe, table: str, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The table in process, the clips in another order than any runner takes."""
    output = tmp_path_factory.mktemp("oracle")
    render_here(table, output, recipe, backwards=True)
    return Ledger(ObjectStore(output))


@pytest.fixture(scope="module", params=["in process", "ray"])
def output(
    request: pytest.FixtureRequest,
    recipe: Recipe,
    table: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ledger:
    """The table as a runner renders it."""
    folder = tmp_path_factory.mktemp("output")
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
        render_tables([table], str(folder), recipe, Silent())
    else:
        render_here(table, folder, recipe)
    return Ledger(ObjectStore(folder))


def read_manifest(ledger: Ledger) -> pa.Table:
    (key,) = ledger.store.list("manifest")
    return pq.read_table(pa.BufferReader(ledger.store.read(key)))


def describe_commits(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Return what two renders of the same clips must agree in."""
    return {
        commit.clip_id: {
            **commit.model_dump(exclude=CHANGING),
            "files": [(each.sha256, each.size_bytes) for each in (commit.video, commit.poster)],
        }
        for commit in ledger.read_commits()
    }


def test_the_same_clips_with_the_same_files(output: Ledger, oracle: Ledger) -> None:
    assert describe_commits(output) == describe_commits(oracle)
    assert len(output.committed_ids()) == NUM_CLIPS


def test_the_same_frames(output: Ledger, oracle: Ledger) -> None:
    for commit in output.read_commits():
        request = commit.request
        frames = read_frames(output.store.locate(commit.video.key))
        other = read_frames(oracle.store.locate(oracle.read_commit(commit.clip_id).video.key))
        assert frames.shape == (request.num_frames, request.height, request.width, 3)
        assert (frames == other).all()


def test_duplicates_are_rendered_once(output: Ledger) -> None:
    rows = read_manifest(output).to_pylist()
    assert rows[0]["uri"] == rows[2]["uri"]
    assert rows[0]["clip_id"] == rows[2]["clip_id"]
    assert [rows[0]["product"], rows[2]["product"]] == ["product 0", "product 2"]
    videos = [key for key in output.store.list("clips") if key.endswith(".mp4")]
    assert len(videos) == NUM_CLIPS


def test_a_clip_that_the_model_refuses_is_a_failure_with_a_reason(
    output: Ledger, oracle: Ledger
) -> None:
    failures = {each.clip_id: each for each in output.latest_failures()}
    rows = read_manifest(output).to_pylist()
    assert failures.keys() == {rows[number]["clip_id"] for number in REFUSED}
    for number, stage in REFUSED.items():
        failure = failures[rows[number]["clip_id"]]
        assert failure.stage == stage
        assert failure.attempts == 1
        assert failure.chain == (failure.reason,)
        assert rows[number]["error"] == f"{stage}: {failure.reason}"
        assert rows[number]["attempt"] == failure.attempt
    said = (failures[rows[number]["clip_id"]] for number in (6, 9))
    assert [(each.code, each.reason.partition(" tokens")[0]) for each in said] == [
        (None, "ValueError: `height` and `width` have to be divisible by 16 but are 32 and 40."),
        ("prompt_too_long", "a prompt or negative prompt of 1081"),
    ]
    same = {(each.clip_id, each.stage, each.reason) for each in failures.values()}
    assert same == {(each.clip_id, each.stage, each.reason) for each in oracle.latest_failures()}


def test_every_row_has_its_end(output: Ledger, oracle: Ledger) -> None:
    status = output.status()
    assert status == oracle.status()
    assert status.rows == len(ROWS)
    assert (status.committed, status.failed, status.rejected) == (NUM_COMMITTED, len(REFUSED), 1)
    assert status.remaining == 0
    assert output.store.exists("_SUCCESS")


def test_the_manifests_agree_and_tell_the_time_of_each_stage(
    output: Ledger, oracle: Ledger
) -> None:
    mine, other = read_manifest(output), read_manifest(oracle)
    assert mine.schema == other.schema
    times = [name for name in mine.column_names if name.endswith("_s") and name != "duration_s"]
    paths = ["uri", "poster_uri", "attempt", "device_seconds", *times]
    assert mine.drop_columns(paths) == other.drop_columns(paths)
    for row in mine.to_pylist():
        done = row["status"] == "committed"
        assert all((row[name] is not None and row[name] > 0) == done for name in times)
        assert (row["device_seconds"] is not None) == done


def test_nothing_is_left_of_the_work(output: Ledger) -> None:
    assert not Checkpoints(output.store, "").clip_ids()
    folders = {key.partition("/")[0] for key in output.store.list()}
    assert folders - {"index.html", "lease", "runs", "checkpoints"} == {
        "_SUCCESS", "clips", "commits", "failures", "manifest", "rejects", "rows", "run.json",
    }  # fmt: skip
