"""What a run shows where there is no terminal: plain lines, one for what matters."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from jobs.plan import PlannedCall
from jobs.progress import ConsoleReporter
from jobs.render import RunResult
from jobs.report.documents import Problem
from jobs.summaries import print_plan, print_status, print_summary
from pipeline.documents import (
    Commit,
    Failure,
    OutputStatus,
    RowCounts,
    TableStatus,
    describe_failure,
)
from pipeline.plan import Plan
from tests.support.tables import RECIPE, plan_columns


def make_console(width: int = 200, *, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=width, force_terminal=terminal), text


def test_a_failure_shows_at_once_with_its_rows_and_in_one_line_each(tmp_path: Path) -> None:
    console, text = make_console()
    plan = plan_columns(tmp_path, prompt=["a", "b", "b"], id=["ad-0", None, "ad [2]"])
    clip_id = plan.tables[0].rows["clip_id"][1].as_py()
    failure: Failure = describe_failure(clip_id, "denoise", ValueError("a\nb [red]c[/red]"))
    with ConsoleReporter(console, console.print) as reporter:
        reporter.planned(PlannedCall(RECIPE, "f" * 64, plan), 0, {}, 1)
        reporter.ended(failure)
    lines = [line for line in text.getvalue().splitlines() if line.startswith("failed")]
    why, table = "in denoise: ValueError: a b [red]c[/red]", tmp_path / "ads.parquet"
    assert lines == [
        f"failed: {clip_id[:16]} (row 1 of {table}) {why}",
        f"failed: ad [2] (row 2 of {table}) {why}",
    ]


def test_of_a_clip_that_many_rows_ask_for_the_first_are_named(tmp_path: Path) -> None:
    console, text = make_console()
    plan = plan_columns(tmp_path, prompt=["a", *["b"] * 1200], id=range(1201))
    shared = plan.tables[0].rows["clip_id"][1].as_py()
    with ConsoleReporter(console, console.print) as reporter:
        reporter.planned(PlannedCall(RECIPE, "f" * 64, plan), 0, plan.requests(), 1)
        reporter.ended(describe_failure(shared, "denoise", "out of memory"))
    *rows, more = [line for line in text.getvalue().splitlines() if line.startswith("failed")]
    assert [line.split()[1] for line in rows] == ["1", "2", "3", "4", "5"]
    assert more == "failed: and 1,195 more rows that ask for the same clip"


def test_what_is_done_is_counted_in_rows(tmp_path: Path) -> None:
    console, text = make_console()
    plan = plan_columns(tmp_path, prompt=["a", "b", "b", "b", None])
    single, shared = (plan.tables[0].rows["clip_id"][row].as_py() for row in (0, 1))
    with ConsoleReporter(console, console.print) as reporter:
        reporter.planned(PlannedCall(RECIPE, "f" * 64, plan), 0, plan.requests(), 1)
        reporter.ended(describe_failure(single, "denoise", "out of memory"))
        reporter.ended(Commit.model_construct(clip_id=shared))
    assert "3/4 rows done, 1 failed, 1 rejected" in text.getvalue().splitlines()


def test_summary_says_where_to_look_and_how_it_ended() -> None:
    console, text = make_console()
    status = RowCounts(rows=3, committed=2, remaining=1)
    result = RunResult(status, "s3://ads/tonight", 2, 0, Plan(()), "Ctrl-C", 0, 61.0)
    print_summary(console, result)
    shown = text.getvalue()
    assert "s3://ads/tonight/index.html" in shown
    assert "s3://ads/tonight/manifest/*.parquet" in shown
    assert "2 clips in 0:01:01" in shown
    assert "remaining" in shown
    assert "The same command goes on from here" in shown


def test_summary_names_nothing_that_is_not_there() -> None:
    console, text = make_console()
    status, why = (
        RowCounts(rows=3, failed=1, remaining=2),
        Problem(stage="denoise", reason="out of memory", rows=1, ids=("a",)),
    )
    result = RunResult(
        status, "out", 0, 1, Plan(()), "SIGTERM", 0, 61.0, failures=(why,), has_page=False
    )
    print_summary(console, result)
    assert "out/" not in text.getvalue()
    assert "Stopped." in text.getvalue()


def test_a_run_without_work_says_so() -> None:
    console, text = make_console()
    status = RowCounts(rows=2, committed=2)
    print_summary(console, RunResult(status, "out", 0, 0, Plan(()), None, 0, 0.5))
    assert "Nothing to do: every row has its end" in text.getvalue()
    sampled = status.model_copy(update={"remaining": 1})
    print_summary(console, RunResult(sampled, "out", 0, 0, Plan(()), None, 0, 0.5))
    assert "Nothing to do: the clips asked for are done" in text.getvalue()


def test_status_counts() -> None:
    console, text = make_console()
    print_status(console, "out", OutputStatus(rows=1234, committed=1200, failed=34, clips=1234))
    shown = text.getvalue()
    assert "1,234" in shown
    assert "34 rows" in shown
    assert "rejected" not in shown


def test_status_lists_tables_where_there_are_several() -> None:
    console, text = make_console()
    ads = TableStatus(name="ads-1", source="s3://ads/[b].parquet", rows=1200, committed=1200)
    old = TableStatus(name="old-2", rows=3, rejected=2, remaining=1)
    both = OutputStatus(rows=1203, committed=1200, rejected=2, remaining=1, tables=(ads, old))
    print_status(console, "out", both)
    assert text.getvalue().splitlines()[-5:] == [
        " rows  committed  failed  rejected  remaining  table, and its source",
        "1,200      1,200       0         0          0  ads-1",
        "  s3://ads/[b].parquet",
        "    3          0       0         2          1  old-2",
        "  source not known",
    ]
    console, text = make_console()
    print_status(console, "out", both.model_copy(update={"tables": (ads,)}))
    assert "ads-1" not in text.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        "s3://acme-ads-prod/tonight/2025-11-30/monday.parquet",
        f"s3://acme-ads-prod/{'a long folder/' * 8}monday.parquet",
    ],
)
def test_names_paths_and_counts_are_whole_on_a_narrow_terminal(source: str) -> None:
    console, text = make_console(width=80, terminal=True)
    name = "acme-ads-prod-tonight-2025-11-30-monday-0123456789abcdef"
    states = {"committed": 2_000_001, "failed": 2_000_002, "rejected": 3, "remaining": 4_000_004}
    tables = [
        TableStatus(name=f"{name}-{k}", source=f"{source}.{k}", rows=8_000_010, **states)
        for k in range(2)
    ]
    output = f"{source}/out"
    print_status(console, output, OutputStatus(rows=8_000_010, tables=tuple(tables)))
    print_summary(console, RunResult(RowCounts(), output, 0, 0, Plan(()), None, 0, 0.5))
    lines = text.getvalue().splitlines()
    counts = ["8,000,010", "2,000,001", "2,000,002", "3", "4,000,004"]
    assert [line.split() for line in lines if name in line] == [
        [*counts, f"{name}-{k}"] for k in range(2)
    ]
    assert [line for line in lines if line.startswith(f"  {source}")] == [
        f"  {source}.{k}" for k in range(2)
    ]
    assert f"output     {output}" in lines
    assert f"review     {output}/index.html" in lines


def test_a_plan_s_notes_are_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    console, text = make_console(width=60, terminal=True)
    plan = plan_columns(tmp_path, prompt=["a"], **{"negative_promt": [None]})
    print_plan(console, plan, RECIPE, None)
    (hint,) = plan.tables[0].hints
    assert len(f"note: {hint}") > 60
    assert hint in text.getvalue()


def test_brackets_in_names_are_no_markup(tmp_path: Path) -> None:
    console, text = make_console()
    plan = plan_columns(tmp_path, **{"[/promt]": ["a"], "width": [65]})
    output = "/ads/out [final][/b]"
    status = OutputStatus(rows=2, committed=1, rejected=1)
    with ConsoleReporter(console, console.print) as reporter:
        reporter.planned(PlannedCall(RECIPE, "f" * 64, plan), 0, {}, 1)
        reporter.finished(RunResult(status, output, 0, 0, plan, None, 0, 1.0))
    print_status(console, output, status)
    shown = text.getvalue()
    assert "note: column '[/promt]' is carried as a label; is it 'prompt'?" in shown
    for place in ("clips/", "manifest/*.parquet", "index.html", "rejects/*.parquet"):
        assert f" {output}/{place}" in shown
    assert f"output     {output}" in shown
