"""Bad rows are rejected with a reason and never stop the others; good ones become requests."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.identity import derive_seed
from pipeline.request import MAX_SEED
from tests.support.tables import RECIPE, plan_columns, reject_of

SIDE = "a multiple of 16 from 32 to 256"
FRAMES = "4k+1 from 5 to 81"
FPS = "a number from 1 to 120"
SEED = f"a whole number from 0 to {MAX_SEED}"
STEPS = "a whole number from 1 to 100"
GUIDANCE = "a number from 0 to 50"
SECONDS = "0.625 to 10.125 at 8 fps (5 to 81 frames)"
CHARS = "at most 200 characters"


def test_missing_values_come_from_the_recipe(tmp_path: Path) -> None:
    plan = plan_columns(tmp_path, prompt=["  A red shoe "])
    (request,) = plan.requests().values()
    fields = request.model_dump(exclude={"opening"})
    seed = fields.pop("seed")
    assert fields == {"prompt": "A red shoe"} | RECIPE.request.model_dump()
    assert seed == derive_seed(fields)


def test_a_given_value_wins_and_an_empty_negative_prompt_is_one(tmp_path: Path) -> None:
    plan = plan_columns(
        tmp_path, negative_prompt=["", None], width=[80, None], seed=[7, None], fps=[12.5, None]
    )
    rows = plan.tables[0].rows.to_pylist()
    assert [row["negative_prompt"] for row in rows] == ["", "blurry"]
    assert [row["width"] for row in rows] == [80, 64]
    assert [row["fps"] for row in rows] == [12.5, 8.0]
    assert rows[0]["seed"] == 7


@pytest.mark.parametrize(
    ("column", "value", "got", "expected", "hint"),
    [
        ("num_frames", 18, "18", FRAMES, "nearest is 17"),
        ("num_frames", 1000, "1000", FRAMES, "nearest is 81"),
        ("num_frames", 1, "1", FRAMES, "nearest is 5"),
        ("width", 65, "65", SIDE, "nearest is 64"),
        ("width", 16, "16", SIDE, "nearest is 32"),
        ("height", 512, "512", SIDE, "nearest is 256"),
        ("height", 0, "0", SIDE, "nearest is 32"),
        ("width", -64, "-64", SIDE, "nearest is 32"),
        ("width", 64.5, "64.5", SIDE, "nearest is 64"),
        ("width", math.inf, "inf", SIDE, "nearest is 256"),
        ("width", math.nan, "NaN", SIDE, "the recipe has 64"),
        ("width", True, "true (bool)", SIDE, "the recipe has 64"),
        ("width", "wide", "'wide'", SIDE, "the recipe has 64"),
        ("width", [64], "a list", SIDE, "the recipe has 64"),
        ("fps", 0.0, "0", FPS, "nearest is 1"),
        ("fps", math.nan, "NaN", FPS, "the recipe has 8"),
        ("fps", 1e300, "1e+300", FPS, "nearest is 120"),
        ("seed", -1, "-1", SEED, "nearest is 0"),
        ("num_inference_steps", 0, "0", STEPS, "nearest is 1"),
        ("num_inference_steps", 10**6, "1000000", STEPS, "nearest is 100"),
        ("guidance_scale", -0.5, "-0.5", GUIDANCE, "nearest is 0"),
        ("guidance_scale", math.inf, "inf", GUIDANCE, "nearest is 50"),
        ("seconds", 100.0, "100", SECONDS, "nearest is 10.125"),
        ("seconds", -1, "-1", SECONDS, "nearest is 0.625"),
        ("seconds", math.nan, "NaN", SECONDS, "the recipe has 2.125"),
        ("seconds", "2s", "'2s'", SECONDS, "the recipe has 2.125"),
        ("seconds", math.inf, "inf", SECONDS, "nearest is 10.125"),
        ("prompt", None, "null", "some text", ""),
        ("prompt", "", "blank text", "some text", ""),
        ("prompt", " \n ", "blank text", "some text", ""),
        ("prompt", "\u200b", "blank text", "some text", ""),
        ("prompt", "\ufeff \u2060\u200d", "blank text", "some text", ""),
        ("prompt", 5, "5", "text", ""),
        ("prompt", ["a"], "a list", "text", ""),
        ("prompt", "x" * 201, "201 characters", CHARS, "cut 1 characters"),
        ("prompt", "a\0b", "control character U+0000 at 1", "text", "take it out"),
        ("negative_prompt", "y" * 300, "300 characters", CHARS, "cut 100 characters"),
        ("id", "x" * 257, "257 characters", "at most 256 characters", "cut 1 characters"),
    ],
)
def test_a_bad_cell_rejects_its_row(
    tmp_path: Path, column: str, value: Any, got: str, expected: str, hint: str
) -> None:
    reason = f"{column}: got {got}, expected {expected}" + (f"; {hint}" if hint else "")
    assert reject_of(plan_columns(tmp_path, **{column: [value]})) == reason


def test_a_bad_row_never_stops_the_others(tmp_path: Path) -> None:
    plan = plan_columns(tmp_path, num_frames=[17, 18, 21, 0])
    assert [reject_of(plan, row) is None for row in range(4)] == [True, False, True, False]
    assert (plan.rows, plan.valid, plan.rejected) == (4, 2, 2)
    (reason,) = plan.reasons
    assert reason.kind == "num_frames: expected 4k+1 from 5 to 81"
    assert (reason.count, reason.row) == (2, 1)
    assert reason.example.startswith("num_frames: got 18")


def test_every_bad_column_is_named_once(tmp_path: Path) -> None:
    text = reject_of(plan_columns(tmp_path, prompt=[""], width=[65], seed=[-5]))
    assert text is not None
    assert [part.partition(": got")[0] for part in text.split("; ") if ": got" in part] == [
        "prompt",
        "width",
        "seed",
    ]


def test_a_rejected_row_keeps_what_could_be_read(tmp_path: Path) -> None:
    plan = plan_columns(
        tmp_path, prompt=["a cup"], width=[65], fps=[math.inf], id=["x"], product=["cup"]
    )
    row = plan.tables[0].rows.to_pylist()[0]
    assert (row["id"], row["prompt"], row["width"], row["product"]) == ("x", "a cup", 65, "cup")
    assert row["fps"] is None
    assert row["clip_id"] is None
    assert row["seed"] is None


@pytest.mark.parametrize(
    ("width", "height", "nearest"),
    [(256, 256, "192x192"), (256, 160, "240x144"), (160, 256, "144x240"), (256, 192, "224x160")],
)
def test_too_many_pixels_name_a_size_of_about_that_shape(
    tmp_path: Path, width: int, height: int, nearest: str
) -> None:
    text = reject_of(plan_columns(tmp_path, width=[width], height=[height]))
    assert text == (
        f"width, height: got {width}x{height} ({width * height} pixels), "
        f"expected at most 36864 pixels; nearest is {nearest}"
    )


@pytest.mark.parametrize(
    "broken",
    [b"\xff\xfe", b"f\xfcr", b"\xed\xa0\x80"],
)
def test_text_that_is_not_utf8_rejects_its_row(tmp_path: Path, broken: bytes) -> None:
    for kind in (pa.string(), pa.large_string()):
        cells = pa.array(
            [b"a cup", broken], pa.binary() if kind == pa.string() else pa.large_binary()
        )
        broken_text = pa.Array.from_buffers(kind, 2, cells.buffers())
        plan = plan_columns(tmp_path, prompt=broken_text, note=broken_text, id=["a", "b"])
        assert reject_of(plan) is None
        assert "not UTF-8" in (reject_of(plan, 1) or "")
        assert plan.tables[0].rows["prompt"].to_pylist() == ["a cup", None]
        assert plan.tables[0].rows["note"].to_pylist()[0] == "a cup"


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(2.0, 8.0, 17), (2.125, 8.0, 17), (1, 8.0, 9), (5.0, 16.0, 81), (5.06, 16.0, 81)],
)
def test_seconds_give_the_nearest_frame_count(
    tmp_path: Path, seconds: float, fps: float, frames: int
) -> None:
    plan = plan_columns(tmp_path, seconds=[seconds], fps=[fps])
    assert reject_of(plan) is None
    assert plan.tables[0].rows["num_frames"].to_pylist() == [frames]


def test_seconds_and_num_frames_must_agree(tmp_path: Path) -> None:
    plan = plan_columns(tmp_path, seconds=[2.0, 2.0, None, 2.0], num_frames=[17, 33, 33, None])
    assert plan.tables[0].rows["num_frames"].to_pylist() == [17, 33, 33, 17]
    assert [reject_of(plan, row) for row in (0, 2, 3)] == [None] * 3
    assert reject_of(plan, 1) == (
        "seconds: got 2 (17 frames at 8 fps), expected what num_frames=33 says; give one of the two"
    )


@pytest.mark.parametrize(
    "width",
    [
        pa.array([80], pa.int8()),
        pa.array([80], pa.uint16()),
        pa.array([80], pa.int32()),
        pa.array([80], pa.uint64()),
        pa.array([80.0], pa.float32()),
        pa.array([80.0], pa.float64()),
        pa.array([Decimal("80.00")], pa.decimal128(10, 2)),
        pa.array(["80"], pa.string()),
        pa.array([" 80.0 "], pa.large_string()),
        pa.array(["8e1"], pa.string_view()),
        pa.array(["80"]).dictionary_encode(),
        pa.array([80]).dictionary_encode(),
    ],
)
def test_a_whole_number_may_come_in_any_type(tmp_path: Path, width: pa.Array) -> None:
    plan = plan_columns(tmp_path, width=width)
    assert reject_of(plan) is None
    assert plan.tables[0].rows["width"].to_pylist() == [80]


def test_a_seed_is_exact_or_rejected(tmp_path: Path) -> None:
    plan = plan_columns(tmp_path, seed=pa.array([MAX_SEED, 2**53 + 1, 2**64 - 1], pa.uint64()))
    assert plan.tables[0].rows["seed"].to_pylist() == [MAX_SEED, 2**53 + 1, None]
    assert "nearest is" in (reject_of(plan, 2) or "")
    floats = plan_columns(tmp_path, seed=[2.0**53 - 1, 2.0**53])
    assert reject_of(floats) is None
    assert "floats lose digits" in (reject_of(floats, 1) or "")


def test_ids_of_any_scalar_type_are_text(tmp_path: Path) -> None:
    def ids(values: pa.Array) -> list[str | None]:
        return plan_columns(tmp_path, id=values).tables[0].rows["id"].to_pylist()

    assert ids(pa.array([2**62, None])) == [str(2**62), None]
    assert ids(pa.array([7.0, None, math.nan])) == ["7", None, None]
    assert ids(pa.array([" a ", "", None])) == ["a", None, None]
    assert ids(pa.array([Decimal("12.00")])) == ["12"]
    assert ids(pa.array([True])) == ["true"]
    assert ids(pa.array([1], pa.date32())) == ["1970-01-02"]
    assert ids(pa.array([b"sku-1"])) == ["sku-1"]
