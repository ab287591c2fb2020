"""The `rushes` command without Ray: bad calls, `plan`, `status`, and what its help says."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import Result
from ray._private import services
from typer.testing import CliRunner

from jobs.cli import ExitCode, app
from jobs.recipes import find_recipe
from pipeline.documents import describe_failure, describe_output
from pipeline.ledger import Ledger
from pipeline.model import fingerprint_model, resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.command import list_files, measure_rushes, write_table

WIDE = {"COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"}


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args, env=WIDE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with one good table in it."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "ads.parquet", prompt=["a red ball", "a blue ball"])
    return tmp_path


# Bad calls: exit code 2, one clear line, and nothing written.


class BadCall(NamedTuple):
    args: str
    says: str
    prepare: Callable[[Path], Any] = lambda folder: None


def write_text(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def write_json(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def write_columns(name: str, **columns: Any) -> Callable[[Path], Any]:
    return lambda folder: write_table(folder / name, **columns)


def make_output(folder: Path, *, fingerprint: str = "", crf: int | None = None) -> None:
    """Leave an output in `out`, as a run with this model and finish does whose clip has failed."""
    recipe = find_recipe(overrides=() if crf is None else (f"finish.crf={crf}",))
    own = fingerprint_model(recipe.model, resolve_checkpoint(recipe.model))
    ledger = Ledger(ObjectStore(folder / "out"))
    ledger.open_output(describe_output(recipe, fingerprint or own))
    ledger.record_failure(describe_failure("a" * 64, "denoise", "out of memory"))


BAD_CALLS = {
    "no such file": BadCall("none.parquet -o out", "none.parquet: no such file or folder"),
    "no match": BadCall("*.csv -o out", "*.csv: no .parquet, .pq, .csv, .jsonl"),
    "not Parquet": BadCall(
        "bad.parquet -o out",
        "bad.parquet is not a Parquet file",
        write_text("bad.parquet", "prompt\na red ball\n"),
    ),
    "cut Parquet": BadCall(
        "bad.parquet -o out",
        "bad.parquet is not a readable Parquet file",
        write_text("bad.parquet", "PAR1 and no more"),
    ),
    "no prompt column": BadCall(
        "text.parquet -o out",
        "text.parquet has no column 'prompt'; its columns are 'Prompt', 'locale'; "
        "rename 'Prompt' to 'prompt'",
        write_columns("text.parquet", Prompt=["a"], locale=["en"]),
    ),
    "empty table": BadCall(
        "empty.parquet -o out",
        "empty.parquet has no rows",
        write_columns("empty.parquet", prompt=[]),
    ),
    "empty file": BadCall(
        "empty.csv -o out", "empty.csv is empty (0 bytes)", write_text("empty.csv", "")
    ),
    "table twice": BadCall("ads.parquet ./ads.parquet -o out", "is given by ads.parquet too"),
    "an id for two": BadCall(
        "ids.parquet -o out",
        "id 'x' stands for two different requests: ids.parquet row 0 and ids.parquet row 1",
        write_columns("ids.parquet", id=["x", "x"], prompt=["one", "two"]),
    ),
    "gangs that the model can't be cut for": BadCall(
        "ads.parquet -o out --set gangs.0.tensor=3",
        "gangs: tensor = 3 doesn't divide transformer: 8 heads; 1, 2, 4, 8 would",
    ),
    "unknown recipe": BadCall(
        "ads.parquet -o out -r tiny-cpo", "no recipe 'tiny-cpo'; did you mean 'tiny-cpu'?"
    ),
    "no recipe file": BadCall("ads.parquet -o out -r my.toml", "no recipe at my.toml"),
    "broken recipe": BadCall(
        "ads.parquet -o out -r my.toml", "my.toml is not a TOML file", write_text("my.toml", "a b")
    ),
    "unknown key": BadCall(
        "ads.parquet -o out --set request.widht=64",
        "unknown key 'request.widht'; did you mean 'width'?",
    ),
    "unknown section": BadCall(
        "ads.parquet -o out --set requests.width=64",
        "unknown key 'requests'; did you mean 'request'?",
    ),
    "bad value": BadCall("ads.parquet -o out --set request.width=wide", "request.width"),
    "no value": BadCall("ads.parquet -o out --set request.width", "expected key=value"),
    "defaults out of limits": BadCall(
        "ads.parquet -o out --set request.width=65",
        "request.width: got 65, expected a multiple of 16",
    ),
    "no checkpoint": BadCall(
        "ads.parquet -o out --set model.checkpoint=./weights",
        "model.checkpoint: no folder at ./weights",
    ),
    "no weights": BadCall(
        "ads.parquet -o out --set model.checkpoint=./weights",
        "holds no *.safetensors weights",
        lambda folder: write_json(folder / "weights" / "model_index.json"),
    ),
    "no pipeline": BadCall(
        "ads.parquet -o out --set model.checkpoint=./weights",
        "model.checkpoint: ./weights is no checkpoint in diffusers format: "
        "it has neither model_index.json nor modular_model_index.json",
        lambda folder: write_json(folder / "weights" / "transformer" / "config.json"),
    ),
    "no such blocks": BadCall(
        "ads.parquet -o out --set model.blocks=Wan22VaceBlock",
        "diffusers has no blocks class 'Wan22VaceBlock'; did you mean 'Wan22VaceBlocks'?",
    ),
    "output is a file": BadCall(
        "ads.parquet -o out", "a file is where a folder is needed", write_text("out", "notes")
    ),
    "output not writable": BadCall("ads.parquet -o /proc/rushes", "/proc/rushes: can't be written"),
    "output of something else": BadCall(
        "ads.parquet -o out",
        "is not empty and no output of rushes",
        lambda folder: write_table(folder / "out" / "photos.parquet", a=[1]),
    ),
    "another model's output": BadCall(
        "ads.parquet -o out",
        f"belongs to another model or finishing spec: model fingerprint is {'f' * 64}",
        lambda folder: make_output(folder, fingerprint="f" * 64),
    ),
    "another finish's output": BadCall(
        "ads.parquet -o out",
        "finish.crf is 30, this run's is 18",
        lambda folder: make_output(folder, crf=30),
    ),
    "memory": BadCall("ads.parquet -o memory://out", "memory:// is of one process"),
    "unknown storage": BadCall("ads.parquet -o ftp://host/out", "no storage of the kind ftp://"),
    "GPUs that aren't here": BadCall(
        "ads.parquet -o out --set gangs.0.count=999 --set gangs.0.num_gpus=1",
        "999 GPUs at least, this machine has ",
    ),
    "no bucket": BadCall("ads.parquet -o s3://", "no bucket; expected s3://BUCKET"),
}


def refuse(*args: str) -> str:
    """Make a bad call; return its one line."""
    result = call(*args)
    assert result.exit_code == ExitCode.USAGE, result.output
    assert result.stdout == ""
    line = result.stderr.removesuffix("\n")
    assert line.startswith("rushes: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("bad", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(folder: Path, bad: BadCall) -> None:
    bad.prepare(folder)
    before = list_files(folder)
    assert bad.says in refuse("render", *bad.args.split())
    assert list_files(folder) == before


@pytest.mark.parametrize(
    ("args", "says", "output", "named"),
    [
        ("nothing.parquet", "nothing.parquet", "out/", "{folder}/out"),
        ("ads.parquet --recipe none", "no recipe 'none'", "s3://ads/out/", "s3://ads/out"),
        ("ads.parquet", "no storage of the kind ftp://", "ftp://ads/out/", "ftp://ads/out/"),
    ],
)
def test_a_bad_call_is_a_line_of_json_where_lines_of_json_are_asked_for(
    folder: Path, args: str, says: str, output: str, named: str
) -> None:
    result = call("render", *args.split(), "-o", output, "--log-format", "json")
    assert (result.exit_code, result.stderr) == (ExitCode.USAGE, "")
    (line,) = map(json.loads, result.stdout.splitlines())
    assert line.keys() == {"time", "level", "event", "output", "exit_code", "error"}
    assert (line["event"], line["level"]) == ("refused", "error")
    assert line["output"] == named.format(folder=folder)
    assert line["exit_code"] == ExitCode.USAGE
    assert says in line["error"]


@pytest.fixture
def silent_address() -> str:
    """A HOST:PORT where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_at_the_address(folder: Path, silent_address: str, scheme: str) -> None:
    before = list_files(folder)
    address = f"{scheme}{silent_address}"
    line = refuse("render", "ads.parquet", "-o", "out", "--address", address)
    assert f"--address {address}: no Ray cluster answers" in line
    assert list_files(folder) == before


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "foo://head:1"])
def test_an_address_of_a_kind_that_no_cluster_has(folder: Path, address: str) -> None:
    before = list_files(folder)
    line = refuse("render", "ads.parquet", "-o", "out", "--address", address)
    assert f"--address {address}: a Ray cluster has no {address.partition(':')[0]}:// " in line
    assert list_files(folder) == before


@pytest.mark.parametrize("address", ["ray://head", "ray://:1", "ray://head:1/x"])
def test_a_clients_address_without_host_or_port(folder: Path, address: str) -> None:
    line = refuse("render", "ads.parquet", "-o", "out", "--address", address)
    assert line.endswith(f"expected ray://HOST:PORT, got {address}")


def test_the_address_may_be_in_rays_own_variable(
    folder: Path, silent_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", silent_address)
    line = refuse("render", "ads.parquet", "-o", "out")
    assert f"--address {silent_address}: no Ray cluster answers" in line


def test_the_cluster_that_ray_remembers_is_gone(
    folder: Path, silent_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = folder / "ray" / "ray_current_cluster"
    remembered.parent.mkdir()
    remembered.write_text(silent_address)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # whatever else runs on this machine
    before = list_files(folder)
    line = refuse("render", "ads.parquet", "-o", "out", "--address", "auto")
    assert "--address auto: no Ray cluster answers" in line
    assert "refused" in line
    assert list_files(folder) == before


@pytest.mark.parametrize("command", ["render", "plan"])
def test_the_tables_are_checked_before_the_model_is_looked_for(folder: Path, command: str) -> None:
    write_table(folder / "ids.parquet", id=["x", "x"], prompt=["one", "two"])
    model = ("--set", "model.checkpoint=./weights", "--set", "gangs.0.tensor=2")
    for table, says in {"none.parquet": "no such file", "ids.parquet": "two different"}.items():
        assert says in refuse(command, table, "-o", "out", *model)
    assert "no folder at ./weights" in refuse(command, "ads.parquet", "-o", "out", *model)
    assert "the output has no name" in refuse(command, "ads.parquet", "-o", "")


@pytest.mark.parametrize(
    "args",
    ["", "ads.parquet", "ads.parquet -o out --limit 0", "ads.parquet -o out --colour", "-o out"],
)
def test_calls_that_break_the_grammar(folder: Path, args: str) -> None:
    result = call("render", *args.split())
    assert result.exit_code == ExitCode.USAGE
    assert "Traceback" not in result.output
    assert not (folder / "out").exists()


def test_it_says_which_version_it_is() -> None:
    assert call("--version").stdout == f"rushes {metadata.version('rushes')}\n"


def test_status_and_plan_of_a_place_that_is_no_output(folder: Path) -> None:
    assert "holds no output of rushes: there is no run.json" in refuse("status", "out")
    assert not (folder / "out").exists()
    make_output(folder, fingerprint="f" * 64)
    assert "another model" in refuse("plan", "ads.parquet", "-o", "out")


# plan


def plan(*args: str) -> tuple[dict[str, str], list[str]]:
    """Return the counts that `rushes plan` prints, and the lines after them."""
    result = call("plan", *args)
    assert result.exit_code == ExitCode.OK, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    counts = dict(re.split(r"  +", line, maxsplit=1) for line in lines if "  " in line)
    return counts, [line for line in lines if "  " not in line]


def test_plan_counts(folder: Path) -> None:
    table = write_table(
        folder / "mixed.parquet",
        prompt=["a red ball", "a blue ball", "a red ball", None],
        width=[128, 64, 128, 64],
        num_frames=[5, 17, 5, 17],
        fps=[8.0] * 4,
        promt=["x"] * 4,
    )
    counts, notes = plan(table)
    assert counts == {
        "rows": "4",
        "valid": "3",
        "rejected": "1",
        "duplicates": "1 (rows that ask for a clip already asked for)",
        "clips": "2",
        "frames": "22 (2.8 s of video)",
        "pixels": f"{128 * 64 * 5 + 64 * 64 * 17:,}",
    }
    assert notes == [
        "note: column 'promt' is carried as a label; is it 'prompt'?",
        f"rejected 1 row: prompt: got null, expected some text (row 3 of {table}, counted from 0)",
    ]
    assert plan(table, "--set", "model.checkpoint=./weights") == (counts, notes)  # not needed
    assert plan(table, "-o", "out")[0] == counts | {"already done": "0", "to render": "2"}
    assert not (folder / "out").exists()


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "null prompt": ({"prompt": None}, "prompt: got null, expected some text"),
    "empty prompt": ({"prompt": ""}, "prompt: got blank text, expected some text"),
    "blank prompt": ({"prompt": " \t "}, "prompt: got blank text, expected some text"),
    "number as prompt": ({"prompt": 7}, "prompt: got 7, expected text"),
    "long prompt": (
        {"prompt": "a" * 2001},
        "prompt: got 2001 characters, expected at most 2000 characters; cut 1 characters",
    ),
    "odd width": (
        {"width": 65},
        "width: got 65, expected a multiple of 16 from 32 to 256; nearest is 64",
    ),
    "zero height": (
        {"height": 0},
        "height: got 0, expected a multiple of 16 from 32 to 256; nearest is 32",
    ),
    "too many pixels": (
        {"width": 256, "height": 256},
        "width, height: got 256x256 (65536 pixels), expected at most 36864 pixels; "
        "nearest is 192x192",
    ),
    "frames": (
        {"num_frames": 18},
        "num_frames: got 18, expected 4k+1 from 5 to 81; nearest is 17",
    ),
    "negative frames": (
        {"num_frames": -4},
        "num_frames: got -4, expected 4k+1 from 5 to 81; nearest is 5",
    ),
    "half a frame": (
        {"num_frames": 16.5},
        "num_frames: got 16.5, expected 4k+1 from 5 to 81; nearest is 17",
    ),
    "seconds": (
        {"seconds": 60.0},
        "seconds: got 60, expected 0.625 to 10.125 at 8 fps (5 to 81 frames); nearest is 10.125",
    ),
    "NaN": (
        {"guidance_scale": math.nan},
        "guidance_scale: got NaN, expected a number from 0 to 50; the recipe has 3",
    ),
    "infinite": (
        {"fps": math.inf},
        "fps: got inf, expected a number from 1 to 120; nearest is 120",
    ),
    "absurd": (
        {"num_inference_steps": 10**15},
        f"num_inference_steps: got {10**15}, expected a whole number from 1 to 100; nearest is 100",
    ),
    "negative seed": (
        {"seed": -1},
        f"seed: got -1, expected a whole number from 0 to {2**63 - 1}; nearest is 0",
    ),
    "text for a number": (
        {"width": "wide"},
        "width: got 'wide', expected a multiple of 16 from 32 to 256; the recipe has 64",
    ),
}


@pytest.mark.parametrize(("row", "says"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_rejected_with_a_reason(folder: Path, row: dict[str, Any], says: str) -> None:
    columns = {"prompt": ["a red ball"], **{name: [value] for name, value in row.items()}}
    table = write_table(folder / "bad.parquet", **columns)
    counts, notes = plan(table, "ads.parquet")
    assert counts["rows"] == "3"
    assert counts["valid"] == "2"
    assert counts["rejected"] == "1"
    assert notes == [f"rejected 1 row: {says} (row 0 of {table}, counted from 0)"]


def test_plan_of_ten_thousand_rows_is_quick_and_needs_neither_ray_nor_torch(folder: Path) -> None:
    rows = 10_000
    table = write_table(
        folder / "many.parquet",
        prompt=[f"a red ball number {row % 9_000}" for row in range(rows)],
        seed=[row % 9_000 for row in range(rows)],
        width=[65 if row % 100 == 0 else 64 for row in range(rows)],
        product=[f"product {row % 7}" for row in range(rows)],
    )
    shown, measured = measure_rushes("plan", table, "-o", "out", cwd=folder)
    assert "rejected 100 rows: width: got 65" in shown
    assert measured["loaded"] == []
    assert measured["cpu_s"] < 2  # 1.0 s on a two-core machine, imports included


def test_a_report_needs_neither_ray_nor_torch(folder: Path) -> None:
    make_output(folder)
    shown, measured = measure_rushes("report", "out", cwd=folder)
    assert measured["code"] == ExitCode.OK
    assert measured["loaded"] == []
    assert f"{folder}/out/report.html" in shown
    assert (folder / "out" / "report.json").exists()
