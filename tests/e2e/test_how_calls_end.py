"""What a call of `rushes render` ends with, and says at its end."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from jobs.cli import ExitCode, app
from jobs.plan import plan_call
from jobs.recipes import find_recipe
from jobs.report import write
from jobs.report.documents import Report
from pipeline.documents import Failure, describe_failure
from pipeline.ledger import Ledger
from pipeline.request import RenderRequest
from pipeline.runs import read_runs
from pipeline.store import ObjectStore
from tests.support.command import list_files, rushes, write_table
from tests.support.outputs import draft

GOOD, WORSE, BAD = "a red ball", "a blue ball", ""
"""Prompts: of a clip that is committed, of one that has failed, of a row that is rejected."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(table: str, *options: str) -> Result:
    """Call `render` for what needs no rendering: clips that are done, or are not tried again."""
    args = ["render", table, "-o", "out", "--no-retry-failed", *options]
    return CliRunner().invoke(app, args, env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def prepare(folder: Path, name: str, prompts: Sequence[str]) -> str:
    """Write a table and, into `out`, what an earlier run has left of its clips."""
    table = write_table(
        folder / name, prompt=prompts, id=[f"ad-{row}" for row in range(len(prompts))]
    )
    call = plan_call([table], find_recipe())
    ledger = Ledger(ObjectStore(folder / "out"))
    ledger.open_output(call.identity)
    media = folder / "media"
    media.write_bytes(b"media")
    for clip_id, request in call.plan.requests(ledger.committed_ids()).items():
        if request.prompt == WORSE:
            ledger.record_failure(describe_failure(clip_id, "denoise", "out of memory"))
        else:
            ledger.commit_clip(draft(clip_id), media, media)
    return name


@pytest.mark.parametrize(
    ("prompts", "options", "code"),
    [
        ((GOOD, BAD), (), ExitCode.INCOMPLETE),
        ((GOOD, BAD), ("--ok-if-rejected",), ExitCode.OK),
        ((BAD, BAD), ("--ok-if-rejected",), ExitCode.INCOMPLETE),
        ((GOOD, WORSE), ("--ok-if-rejected",), ExitCode.INCOMPLETE),
        ((GOOD, WORSE, BAD), ("--ok-if-rejected",), ExitCode.INCOMPLETE),
    ],
)
def test_rejected_rows_may_be_let_pass_and_failed_ones_never(
    folder: Path, prompts: tuple[str, ...], options: tuple[str, ...], code: ExitCode
) -> None:
    result = render(prepare(folder, "ads.parquet", prompts), *options)
    assert result.exit_code == code, result.output
    assert ("rejects/*.parquet" in result.output) == (BAD in prompts)


@pytest.mark.parametrize(
    ("prompts", "code"), [((GOOD,), ExitCode.OK), ((GOOD, WORSE), ExitCode.INCOMPLETE)]
)
def test_a_run_that_writes_its_report_ends_as_it_would_without(
    folder: Path, prompts: tuple[str, ...], code: ExitCode
) -> None:
    table = prepare(folder, "ads.parquet", prompts)
    assert render(table).exit_code == code
    report = folder / "out" / "report.json"
    assert not report.exists()
    assert render(table, "--report").exit_code == code
    told = Report.model_validate_json(report.read_text("utf-8"))
    assert (told.rows.committed, told.rows.failed) == (1, len(prompts) - 1)
    page = folder / "out" / "report.html"
    page.unlink()
    (page / "in the way").mkdir(parents=True)
    result = render(table, "--report")
    assert result.exit_code == code
    assert "the report can't be written" in result.output


def test_a_night_that_has_no_home_says_all_of_it_in_lines_of_json(folder: Path) -> None:
    table = prepare(folder, "ads.parquet", (GOOD,))
    (home := folder / "home").write_text("a file, below which nothing can be made")
    no_home = dict.fromkeys(("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "")
    options = ("-o", "out", "--report", "--log-format", "json")
    done = rushes("render", table, *options, cwd=folder, HOME=str(home), **no_home)
    assert done.returncode == ExitCode.OK, done
    events = [json.loads(line)["event"] for line in (done.stdout + done.stderr).splitlines()]
    assert events[-1] == "finished"
    assert (folder / "out" / "report.html").exists()


def test_a_call_that_is_mended_takes_over_what_the_wrong_one_has_begun(folder: Path) -> None:
    wrong = find_recipe(overrides=["finish.crf=51"])
    table = write_table(folder / "ads.parquet", prompt=[BAD, BAD])
    ledger = Ledger(ObjectStore(folder / "out"))
    ledger.open_output(plan_call([table], wrong).identity)
    assert render(table).exit_code == ExitCode.INCOMPLETE
    assert ledger.read_output().finish["crf"] == find_recipe().finish.crf
    ledger.record_failure(describe_failure("a" * 64, "denoise", "out of memory"))
    refused = render(table, "--set", "finish.crf=51")
    assert refused.exit_code == ExitCode.USAGE
    assert "belongs to another model or finishing spec" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_while_it_reports_has_ended_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stop(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(write, "write_report", stop)
    result = render(prepare(folder, "ads.parquet", (GOOD,)), "--report")
    assert result.exit_code == ExitCode.OK, result.output
    assert "committed" in result.output
    assert "the report can't be written" in result.output


def test_a_report_that_fails_as_nobody_foresaw_changes_no_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(write, "write_report", fail)
    result = render(prepare(folder, "ads.parquet", (GOOD,)), "--report")
    assert result.exit_code == ExitCode.OK, result.output
    assert "the report can't be written: RuntimeError: no such thing; rushes rep" in result.output


def test_a_call_ends_as_its_own_tables_do(folder: Path) -> None:
    monday = render(prepare(folder, "monday.parquet", (GOOD, BAD, WORSE, BAD)))
    assert monday.exit_code == ExitCode.INCOMPLETE
    assert "other tables" not in monday.output
    tuesday = render(prepare(folder, "tuesday.parquet", ("a green ball", GOOD)))
    assert tuesday.exit_code == ExitCode.OK, tuesday.output
    lines = tuesday.output.splitlines()
    assert [line.split() for line in lines if line.startswith("committed")] == [
        ["committed", "2", "rows"]
    ]
    assert not any(line.startswith(("failed", "rejected", "rejects")) for line in lines)
    assert lines[-2:] == [
        "Nothing to do: every row has its end.",
        f"other tables here: 1, of whose rows 1 failed, 2 rejected: rushes status {folder}/out",
    ]
    shown = CliRunner().invoke(app, ["status", "out"]).output.splitlines()
    assert [line.split()[:2] for line in shown[1:5]] == [
        ["rows", "6"],
        ["committed", "3"],
        ["failed", "1"],
        ["rejected", "2"],
    ]
    tables = {
        source.strip(): counts.split()[:-1]
        for counts, source in pairwise(shown)
        if source.startswith("  file://")
    }
    assert tables == {
        f"file://{folder}/monday.parquet": ["4", "1", "1", "2", "0"],
        f"file://{folder}/tuesday.parquet": ["2", "2", "0", "0", "0"],
    }


def test_a_table_that_was_moved_is_cleaned_away_by_its_name(folder: Path) -> None:
    render(prepare(folder, "monday.parquet", (GOOD, WORSE)))
    (folder / "monday.parquet").rename(folder / "moved.parquet")
    assert "other tables here: 1" in render("moved.parquet").output
    shown = CliRunner().invoke(app, ["status", "out"]).output
    (name,) = re.findall(r" (monday-\w+)$", shown, re.MULTILINE)
    listed = CliRunner().invoke(app, ["clean", "out", "--table", name])
    assert "Nothing was removed" in listed.output
    assert "other tables here: 1" in render("moved.parquet").output
    assert CliRunner().invoke(app, ["clean", "out", "--table", name, "--yes"]).exit_code == 0
    left = render("moved.parquet")
    assert "other tables" not in left.output
    assert re.search(r"^committed +1 row\b", left.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("prompts", "code"),
    [
        ((BAD, GOOD, WORSE), ExitCode.OK),
        ((BAD, WORSE, GOOD), ExitCode.INCOMPLETE),
    ],
)
def test_a_sample_ends_as_its_clips_do(
    folder: Path, prompts: tuple[str, ...], code: ExitCode
) -> None:
    result = render(prepare(folder, "ads.parquet", prompts), "--limit", "1")
    assert result.exit_code == code, result.output
    assert "rejected 1 row: prompt: got blank text" in result.output


@pytest.mark.parametrize("options", [(), ("--limit", "1"), ("--limit", "1", "--ok-if-rejected")])
def test_tables_without_a_valid_row_are_no_success(folder: Path, options: tuple[str, ...]) -> None:
    result = render(prepare(folder, "ads.parquet", (BAD, BAD)), *options)
    assert result.exit_code == ExitCode.INCOMPLETE, result.output
    assert "Nothing to render: no row is valid." in result.output
    assert "every row has its end" not in result.output


def test_a_damaged_table_is_found_before_anything_is_rendered(folder: Path) -> None:
    store = ObjectStore(folder / "out")
    render(prepare(folder, "monday.parquet", (GOOD,)))
    (key,) = Ledger(store).list_tables("rows")
    store.put(key, store.read(key)[:-1])
    before = list_files(folder / "out")
    write_table(folder / "tuesday.parquet", prompt=["a green ball"])
    result = render("tuesday.parquet")
    assert result.exit_code == ExitCode.USAGE, result.output
    assert f"{folder}/out/{key} is not what rushes writes there: " in result.stderr
    after = list_files(folder / "out")
    assert {name: after[name] for name in before if not name.startswith("lease/")} == {
        name: content for name, content in before.items() if not name.startswith("lease/")
    }
    assert not any(name.startswith(("runs/", "rows/tuesday")) for name in after)
    (line,) = result.stderr.splitlines()
    command = line.partition("drop the table: rushes ")[2].split()
    assert CliRunner().invoke(app, command).exit_code == ExitCode.OK
    assert render(prepare(folder, "tuesday.parquet", ("a green ball",))).exit_code == ExitCode.OK
    render("monday.parquet")
    store.put(key, b"junk")
    assert render("monday.parquet").exit_code == ExitCode.OK, "its own table is written anew"


def test_damage_that_is_found_once_clips_have_ended_breaks_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_all(
        call: object, ledger: Ledger, requests: dict[str, RenderRequest], *_: object
    ) -> Iterator[Failure]:
        for clip_id in requests:
            ended = describe_failure(clip_id, "denoise", "out of memory")
            ledger.record_failure(ended)
            yield ended

    prepare(folder, "ads.parquet", (GOOD,))
    store = ObjectStore(folder / "out")
    (commit,) = store.list("commits")
    store.put(commit, b"junk")
    nothing_ended = render("ads.parquet")
    assert nothing_ended.exit_code == ExitCode.USAGE, nothing_ended.output
    monkeypatch.setattr("jobs.render.run_on_ray", fail_all)  # Ray takes longer, and adds nothing
    write_table(folder / "ads.parquet", prompt=[GOOD, "a green ball"], id=["ad-0", "ad-1"])
    result = render("ads.parquet")
    assert result.exit_code == ExitCode.BROKEN, result.output
    assert f"the run broke: {folder}/out/{commit} is not what rushes writes there" in result.stderr
    assert [(run.ended, run.failed) for run in read_runs(store)] == [("broken", 1)]
    store.delete(commit)
    write_table(folder / "ads.parquet", prompt=["a green ball"], id=["ad-1"])
    assert render("ads.parquet").exit_code == ExitCode.INCOMPLETE


def test_names_with_colons_are_no_emoji(folder: Path) -> None:
    prepare(folder, "ads.parquet", (WORSE, BAD))
    table = write_table(
        folder / "ads:100:.parquet", prompt=[WORSE, BAD], id=["promo:100:de", "promo:100:fr"]
    )
    result = render(table)
    assert "failed 1 row in denoise: out of memory (promo:100:de)" in result.output
    assert "/ads:100:.parquet, counted from 0)" in result.output
    (folder / "ads:100:.parquet").unlink()
    assert "ads:100:.parquet" in render(table).stderr


def test_why_clips_failed_before_is_told_with_where_the_list_is(folder: Path) -> None:
    result = render(prepare(folder, "ads.parquet", (GOOD, WORSE, WORSE)))
    assert result.exit_code == ExitCode.INCOMPLETE
    assert "failed 2 rows in denoise: out of memory (ad-1, ad-2)" in result.output
    assert f"errors     {folder}/out/manifest/*.parquet, column error" in result.output
