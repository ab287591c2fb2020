"""The morning report: its numbers against those computed by hand, and what its page makes of them.

Of `tests.support.reported`'s output: A, B and F are committed with 60, 120 and 3420 device-seconds,
by the first, second and third run; G, which no row asks for, with 10 by the third.
"""

from __future__ import annotations

import html
import json
import re
import uuid
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from click.testing import Result
from markupsafe import escape
from typer.testing import CliRunner

from jobs.cli import ExitCode, app
from jobs.report.collect import Price, collect_report
from jobs.report.documents import LabelValue, Report
from jobs.report.labels import MAX_FEW_VALUES, MAX_LABELS, MAX_VALUES
from jobs.report.page import render_report
from pipeline.errors import UsageError
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.runs import RunRecord, put_run, read_runs
from pipeline.store import ObjectStore
from tests.support.outputs import IDENTITY
from tests.support.reported import HOSTILE, A, B, F, at, make_output, plan_rows, write_commit

WIDE = {"COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def night(store: ObjectStore) -> ObjectStore:
    make_output(store)
    return store


def collect(store: ObjectStore, *by: str, price: float | None = None) -> Report:
    return collect_report(store, by, Price(price)).report


def render(store: ObjectStore, *by: str, price: float | None = None) -> str:
    return render_report(collect_report(store, by, Price(price)))


def find_values(report: Report, label: str) -> dict[str | None, LabelValue]:
    (found,) = (each for each in report.labels if each.label == label)
    return {each.value: each for each in found.values}


def test_rows_and_work(night: ObjectStore) -> None:
    report = collect(night, price=2.5)
    assert report.rows == Ledger(night).status()
    assert report.rows.model_dump(exclude={"tables"}) == {
        "rows": 9, "committed": 4, "failed": 2, "rejected": 2, "remaining": 1,
        "clips": 6, "clips_committed": 3,
    }  # fmt: skip
    assert report.work.model_dump() == {
        "clips": 3, "video_s": 10.0, "device_seconds": 3600.0, "cost": 2.5,
    }  # fmt: skip
    assert (report.first_commit_at, report.last_commit_at) == (at(0.5), at(3.5))
    assert collect(night).work.cost is None


def test_reasons_that_differ_in_numbers_alone_are_one(night: ObjectStore) -> None:
    report = collect(night)
    assert [each.model_dump() for each in report.failures] == [
        {
            "stage": "denoise",
            "reason": "lost 3 gangs, the last cpu-0",
            "rows": 2,
            "ids": ("ad-c", "ad-d"),
        }
    ]
    assert [each.model_dump() for each in report.rejects] == [
        {
            "stage": None,
            "reason": "width: got 65, expected a multiple of 16; nearest is 64",
            "rows": 2,
            "ids": ("ad-e", "ads row 6"),
        }
    ]


def test_a_clip_that_rows_share_counts_once_with_the_first(night: ObjectStore) -> None:
    values = find_values(collect(night, price=3600.0), "product")
    assert {
        name: (each.rows, each.committed, each.clips, each.device_seconds, each.cost)
        for name, each in values.items()
    } == {
        "bottle": (4, 2, 2, 3480.0, 3480.0),  # A and F
        HOSTILE: (1, 1, 1, 120.0, 120.0),
        "shoe": (3, 1, 0, 0.0, 0.0),
        None: (1, 0, 0, 0.0, 0.0),
    }
    shoe = values["shoe"]
    assert (shoe.failed, shoe.rejected, shoe.remaining) == (2, 0, 0)
    assert values["bottle"].video_s == 7.0


def test_which_labels_are_broken_down_by(night: ObjectStore) -> None:
    """Not `tags`, whose values are lists; one table has no campaign, the other no season."""
    report = collect(night)
    assert [each.label for each in report.labels] == ["product", "campaign", "take", "season"]
    assert find_values(report, "season")["spring"].device_seconds == 3420.0
    assert find_values(report, "campaign")[None].rows == 1
    assert [each.label for each in collect(night, "season", "take").labels] == ["season", "take"]
    with pytest.raises(UsageError, match=r"--by colour: no .*product, campaign, take, season"):
        collect(night, "colour")
    with pytest.raises(UsageError, match=r"--by tags: .*list"):
        collect(night, "tags")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_text_is_broken_down_by_in_whatever_form(store: ObjectStore, kind: pa.DataType) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    label = pa.array(["cup", "can"], kind)
    ledger.save_rows("ads", plan_rows([(A, None, "a"), (B, None, "b")], product=label))
    assert list(find_values(collect(store, "product"), "product")) == ["can", "cup"]


def test_labels_of_many_values_or_one_are_left_out_unless_named(store: ObjectStore) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    count = MAX_VALUES + 1
    labels = {f"few {number}": [row % 3 for row in range(count)] for number in range(6)}
    labels["same"] = ["x"] * count
    labels["most"] = [row % MAX_FEW_VALUES for row in range(count)]
    labels["many"] = [row % (MAX_FEW_VALUES + 1) for row in range(count)]
    labels["each"] = list(range(count))
    rows = [(None, "prompt: blank", None)] * count
    ledger.save_rows("ads", plan_rows(rows, **dict(reversed(labels.items()))))
    chosen = [each.label for each in collect(store).labels]
    assert chosen == ["most", "few 5", "few 4", "few 3"]
    assert len(chosen) == MAX_LABELS
    assert len(find_values(collect(store, "many"), "many")) == MAX_FEW_VALUES + 1
    assert list(find_values(collect(store, "same"), "same")) == ["x"]
    with pytest.raises(UsageError, match="--by each: it has more than 1,000 values"):
        collect(store, "each")


def test_times_are_told_in_utc_whatever_zones_this_machine_knows(store: ObjectStore) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    rows = [(None, "prompt: blank", None)] * 3
    for name, zone in (("ads", "Mars/Phobos"), ("more", "UTC")):
        aired = pa.array([0, 3_600_000, None], pa.timestamp("ms", zone))
        ledger.save_rows(name, plan_rows(rows, aired=aired))
    values = find_values(collect(store), "aired")
    found = {value: each.rows for value, each in values.items()}
    assert found == {"1970-01-01 00:00:00.000Z": 2, "1970-01-01 01:00:00.000Z": 2, None: 2}


def test_stages(night: ObjectStore) -> None:
    stages = {each.stage: each for each in collect(night).stages}
    assert list(stages) == ["encode", "denoise", "develop", "upload"]
    denoise = stages["denoise"]
    assert (denoise.clips, denoise.median_s, denoise.total_s) == (3, 60.0, 3510.0)
    assert denoise.p95_s == pytest.approx(60 + 0.9 * 3360)  # between the second and the third
    assert stages["upload"].total_s == 0.75


def test_clips_that_stand_out(night: ObjectStore) -> None:
    report = collect(night)
    assert [(each.id, each.device_seconds) for each in report.slowest] == [
        ("ad-f", 3420.0), (B[:16], 120.0), ("ad-a", 60.0),
    ]  # fmt: skip
    assert report.num_retried == 1
    (retried,) = report.retried
    assert (retried.clip_id, retried.attempts) == (B, 4)  # two failed in a run before
    assert retried.video.startswith(f"clips/{B[:2]}/{B}/")


def test_of_many_clips_the_slowest_are_told(store: ObjectStore) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    ids = [f"{number:064x}" for number in range(40)]
    ledger.save_rows("ads", plan_rows([(each, None, None) for each in ids]))
    for number, clip_id in enumerate(ids):
        write_commit(store, clip_id, 1, device_seconds=float(number * 7 % 40))
    assert [each.device_seconds for each in collect(store).slowest] == list(range(39, 29, -1))


def test_runs_and_what_they_used(night: ObjectStore) -> None:
    report = collect(night, price=3600.0)
    assert [
        (run.epoch, run.ended, run.committed, run.clip_device_seconds, run.gangs_lost)
        for run in report.runs
    ] == [(1, None, 1, 60.0, 0), (2, "SIGTERM", 1, 120.0, 2), (3, "broken", 2, 3430.0, 1)]
    assert not any(run.writing for run in report.runs)
    assert report.use is not None
    assert report.use.model_dump() == {
        "runs": 2, "used": 7100.0, "ideal": 3550.0, "ratio": 0.5, "cost": 7100.0,
    }  # fmt: skip


def test_a_run_that_died_counts_with_what_it_had_told(night: ObjectStore) -> None:
    """The runs after it commit what it had saved: without it they would seem to use less."""
    first, *_ = read_runs(night)
    put_run(night, first.model_copy(update={"device_seconds": 120.0}))
    use = collect(night).use
    assert use is not None
    assert (use.runs, use.used, use.ideal) == (3, 7100.0 + 120.0, 3550.0 + 60.0)
    assert "left out of the total" not in render(night)


def test_a_run_has_what_it_committed_whatever_its_machines_clock_said(store: ObjectStore) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", plan_rows([(each, None, None) for each in (A, B, F)]))
    for epoch, clip_id, hours in ((1, A, 30), (2, B, 1), (3, F, 2)):  # the first one's is ahead
        started_at = at(hours - 0.5)
        put_run(store, RunRecord(epoch=epoch, clips=1, recipe="tiny-cpu", started_at=started_at))
        write_commit(store, clip_id, hours, epoch=epoch)
    assert [run.committed for run in collect(store).runs] == [1, 1, 1]


def test_a_run_that_writes_now_is_told_from_one_that_died(night: ObjectStore) -> None:
    put_run(night, RunRecord(epoch=4, clips=1, recipe="tiny-cpu", started_at=at(5)))
    for _ in range(4):
        lease = Lease.acquire(night, 60.0)
        if lease.epoch < 4:
            lease.release()
    assert [run.writing for run in collect(night).runs] == [False, False, False, True]
    assert "writes now" in render(night)
    lease.release()
    assert [run.writing for run in collect(night).runs] == [False] * 4


def test_an_output_without_anything(store: ObjectStore) -> None:
    with pytest.raises(UsageError, match="no output of rushes"):
        collect(store)
    Ledger(store).open_output(IDENTITY)
    report = collect(store)
    assert (report.rows.rows, report.use, report.last_commit_at) == (0, None, None)
    assert "No run has left a record here." in render(store)


def test_parts_make_one_whole(night: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(night)
    monkeypatch.setattr("pipeline.ledger.PART_ROWS", 1)
    parts = collect(night)
    assert parts.model_copy(update={"made_at": whole.made_at}) == whole


# The page.


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def test_the_page_runs_fetches_and_styles_nothing(night: ObjectStore) -> None:
    page = render(night, price=2.5)
    parser = _Tags()
    parser.feed(page)
    tags = {tag for tag, _ in parser.found}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "image"})
    assert sum(tag == "style" for tag, _ in parser.found) == 1
    for tag, attributes in parser.found:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src", "xlink:href"):
            target = attributes.get(name) or ""
            assert tag == "link" or not re.match(r"[a-z]+:|//", target), (tag, target)
    policy = next(a["content"] for t, a in parser.found if t == "meta" and "http-equiv" in a)
    assert str(policy).startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in str(policy)


def test_what_a_table_or_an_error_says_is_escaped(night: ObjectStore) -> None:
    page = render(night)
    assert "<img" not in page
    assert "</script" not in page
    assert str(escape(HOSTILE)) in page
    assert "no space left" in page


def test_the_page_says_what_the_numbers_say(night: ObjectStore) -> None:
    page = render(night, price=2.5)
    said = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for part in (
        "died without a word", "stopped by SIGTERM", "broken: no space left", "50%", "unknown",
        "lost 3 gangs, the last cpu-0", "ad-c, ad-d", "ads row 6", "$2.50", "$4.93",
        "What 1 run that died as it began held is not known",
    ):  # fmt: skip
        assert part in said, part
    for clip_id in (A, B, F):
        assert f'href="clips/{clip_id[:2]}/{clip_id}/' in page


def test_charts_are_the_same_every_time_and_their_text_is_text(night: ObjectStore) -> None:
    charts = re.findall(r"<svg [^>]*chart.*?</svg>", render(night), re.DOTALL)
    assert charts == re.findall(r"<svg [^>]*chart.*?</svg>", render(night), re.DOTALL)
    assert len(charts) == 2 + MAX_LABELS
    assert ">denoise</text>" in charts[1]
    assert ">bottle</text>" in charts[2]
    assert "#" not in re.sub(r"url\(#\w+\)|href=\"#\w+\"", "", "".join(charts)), "a colour"


def test_labels_that_xml_has_no_word_for(store: ObjectStore) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    names = ["nul \x00 bell \x07", "line\nline\u2028", "東京 🎬 \u202e", "$", "a" * 5000]
    ids = [f"{number:064x}" for number in range(len(names))]
    rows = plan_rows([(each, None, None) for each in ids], **{"<b>$\\": pa.array(names)})
    ledger.save_rows("ads", rows)
    for clip_id in ids:
        write_commit(store, clip_id, 1)
    page = render(store)
    assert "東京" in page
    assert "<b>" not in page


# The command.


def call(*args: str) -> Result:
    return CliRunner().invoke(app, ["report", *args], env=WIDE)


def test_the_command_writes_both_and_says_where(night: ObjectStore) -> None:
    before = set(night.list())
    result = call(night.uri, "--by", "product", "--price", "2.5", "--currency", "EUR")
    assert result.exit_code == ExitCode.OK, result.output
    assert set(night.list()) - before == {"report.html", "report.json"}
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert {name: text.strip() for name, text in shown.items()} == {
        "rows": "9: 4 committed, 2 failed, 2 rejected, 1 remaining",
        "clips": "3, 10.0 s of video",
        "denoising": "60.00 device-minutes, 2.50 EUR",
        "held": "118.33 device-minutes, 4.93 EUR; 50% of it in clips",
        "runs": f"3, the last one: broken: no space left {HOSTILE}",
        "failed": "2: denoise: lost 3 gangs, the last cpu-0",
        "rejected": "2: width: got 65, expected a multiple of 16; nearest is 64",
        "report": f"{night.uri}/report.html",
        "data": f"{night.uri}/report.json",
    }
    kept = Report.model_validate_json(night.read("report.json"))
    assert [each.label for each in kept.labels] == ["product"]
    assert b"EUR" in night.read("report.html")


def test_json_alone_goes_to_stdout(night: ObjectStore) -> None:
    result = call(night.uri, "--json")
    assert json.loads(result.stdout) == json.loads(night.read("report.json"))


def test_a_bad_label_is_a_bad_call_and_writes_nothing(night: ObjectStore) -> None:
    result = call(night.uri, "--by", "colour")
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr.startswith("rushes: --by colour: no table has such a label")
    assert not night.exists("report.html")
