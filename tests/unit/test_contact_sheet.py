"""The contact sheet's page: its data, links, types and what keeps it safe."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import hashlib
import html
import json
import re
import time
from typing import Any

import pyarrow as pa
import pytest

from jobs.contact_sheet import FIELDS, MAX_VALUE_CHARS, relative_link, render_contact_sheet

CLIP_ID = "ab" * 32


def read_data(page: str) -> dict[str, Any]:
    """Return the page's data with every column's values, as the page's script reads them."""
    (block,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    data = json.loads(block)
    columns = [*data["fields"], *data["labels"]]
    values = {c["name"]: c.get("values", [c.get("same")] * data["num_rows"]) for c in columns}
    return values | {"num_rows": data["num_rows"], "labels": [c["name"] for c in data["labels"]]}


def render(*tables: pa.Table, title: str = "Run") -> dict[str, Any]:
    return read_data(render_contact_sheet(tables, title))


@pytest.mark.parametrize(
    "base",
    ["/data/out", "out/demo", "s3://bucket/some/prefix", "file:///data/a b", "memory://clips"],
)
def test_links_are_relative_to_the_output(base: str):
    path = f"clips/ab/{CLIP_ID}/3f.mp4"
    assert relative_link(f"{base}/{path}") == path
    assert relative_link(path) == path


def test_links_are_quoted():
    assert relative_link("o/clips/ab/c/a b#1?.mp4") == "clips/ab/c/a%20b%231%3F.mp4"


@pytest.mark.parametrize("uri", ["javascript:alert(1)", "https://elsewhere/a.mp4", "a/b.mp4"])
def test_an_address_outside_the_layout_is_an_error(uri: str):
    with pytest.raises(ValueError, match="does not end in clips/"):
        relative_link(uri)


def test_rows_keep_their_order_over_tables():
    one = pa.table({"id": ["b", "a"], "status": ["committed", "failed"], "product": ["x", "y"]})
    two = pa.table({"id": ["c"], "status": ["rejected"], "rank": [7]})
    data = render(one, two)
    assert data["id"] == ["b", "a", "c"]
    assert data["labels"] == ["product", "rank"]
    assert data["product"] == ["x", "y", None]
    assert data["rank"] == [None, None, 7]


def test_every_manifest_column_is_a_field_and_the_rest_are_labels():
    table = pa.table({name: pa.nulls(1) for name in (*FIELDS, "video", "poster", "__proto__")})
    data = render(table)
    assert data["labels"] == ["video", "poster", "__proto__"]


def test_media_links_come_from_the_addresses():
    folder = f"s3://bucket/out/clips/ab/{CLIP_ID}"
    table = pa.table({"uri": [f"{folder}/1.mp4", None], "poster_uri": [f"{folder}/1.jpg", None]})
    data = render(table)
    assert data["video"] == [f"clips/ab/{CLIP_ID}/1.mp4", None]
    assert data["poster"] == [f"clips/ab/{CLIP_ID}/1.jpg", None]
    assert data["uri"][0] == f"{folder}/1.mp4"


ISTANBUL = dt.timezone(dt.timedelta(hours=3))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1, None]), [1, None]),
        (pa.array([2**53, -(2**63)]), ["9007199254740992", "-9223372036854775808"]),
        (pa.array([1.5, float("nan"), float("-inf")]), [1.5, "nan", "-inf"]),
        (pa.array([1.5], pa.float16()), [1.5]),
        (pa.array([True, False]), [True, False]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.array(["a"], pa.string_view()), ["a"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([decimal.Decimal("1.10")]), ["1.10"]),
        (pa.array([dt.date(2026, 1, 2)]), ["2026-01-02"]),
        (pa.array([dt.time(3, 4, 5)]), ["03:04:05"]),
        (pa.array([dt.datetime(2026, 1, 2, 3)], pa.timestamp("s")), ["2026-01-02 03:00:00"]),
        (pa.array([1], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001"]),
        (
            pa.array([dt.datetime(2026, 1, 2, 3, tzinfo=ISTANBUL)], pa.timestamp("us", "+03:00")),
            ["2026-01-02 00:00:00Z"],
        ),
        (pa.array([90], pa.duration("ms")), ["90 ms"]),
        (pa.array([["a", None], [], None]), [["a", None], [], None]),
        (pa.array([{"a": {"b": [1, 2**60]}}]), [{"a": {"b": [1, str(2**60)]}}]),
        (pa.array([[("k", 1.0)]], pa.map_(pa.string(), pa.float32())), [{"k": 1.0}]),
        (pa.array([[1, 2]], pa.list_(pa.int32(), 2)), [[1, 2]]),
        (pa.array([{"t": 5}], pa.struct({"t": pa.timestamp("ns", "UTC")})), None),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_labels_of_any_type_are_shown(array: pa.Array, expected: list[Any] | None):
    got = render(pa.table({"label": array}))["label"]
    assert got == (expected or [{"t": "1970-01-01 00:00:00.000000005Z"}])
    assert [type(v) for v in got] == [type(v) for v in expected or got]


def omit(array: pa.Array) -> tuple[list[Any], list[int]]:
    """Return a label's values on the page, and the rows of those that can't be filtered by."""
    page = render_contact_sheet([pa.table({"label": array})], "Run")
    (raw,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    (label,) = json.loads(raw)["labels"]
    return label["values"], label.get("omitted", [])


def test_bytes_are_told_by_their_size():
    sizes = {7: "7 B", 1500: "1.5 kB", 50_000: "50 kB", 2_000_000: "2.0 MB"}
    array = pa.array([None, *(b"x" * size for size in sizes)], pa.large_binary())
    assert omit(array) == (
        [None, *(f"bytes, {text}" for text in sizes.values())],
        [1, 2, 3, 4],
    )


def test_what_is_long_is_cut():
    words, many = "wörd " * 1000, [0.25] * 5000
    assert omit(pa.array(["short", words])) == (["short", f"{words[:MAX_VALUE_CHARS]}…"], [1])
    (short, long), rows = omit(pa.array([[0.25, 1.0], many]))
    assert (short, rows) == ([0.25, 1.0], [1])
    assert long.startswith("[0.25, 0.25, ")
    assert len(long) == MAX_VALUE_CHARS + 1
    (_, nested), rows = omit(pa.array([None, {"a": {"b": many}, "c": words}]))
    assert (nested[:20], rows) == ('{"a": {"b": [0.25, 0', [1])
    pairs = [(f"key {number}", 1) for number in range(500)]
    (_, long), rows = omit(pa.array([[], pairs], pa.map_(pa.string(), pa.int8())))
    assert (long[:11], rows) == ('{"key 0": 1', [1])


def test_embeddings_and_thumbnails_weigh_little():
    count = 200
    table = pa.table(
        {"thumbnail": [bytes([row]) * 50_000 for row in range(count)],
         "embedding": [[row / 7] * 20_000 for row in range(count)]}
    )  # fmt: skip
    plain = render_contact_sheet([pa.table({"id": ["a"] * count})], "Run")
    assert len(render_contact_sheet([table], "Run")) - len(plain) < count * 2 * MAX_VALUE_CHARS


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "\"'`&amp;{{ 7 * 7 }}{% raw %}",
    "line\u2028paragraph\u2029nul\x00tab\t\\",
    "😀 日本語 שלום",
)


@pytest.mark.parametrize("words", HOSTILE)
def test_words_never_become_markup(words: str):
    plain = render_contact_sheet([pa.table({"id": ["a"]})], "Run")
    table = pa.table({"id": [words], "prompt": [words], words: [words], "n": [{words: words}]})
    page = render_contact_sheet([table], "Run")
    data = read_data(page)
    assert data["prompt"] == [words]
    assert data[words] == [words]
    assert data["n"] == [{words: words}]
    for mark in ("<", ">", "\u2028", "\u2029"):
        assert page.count(mark) == plain.count(mark)


@pytest.mark.parametrize("words", HOSTILE)
def test_a_title_never_becomes_markup(words: str):
    page = render_contact_sheet([pa.table({"id": ["a"]})], words)
    assert page.count("<script") == 2
    assert "<img" not in page
    (shown,) = re.findall(r"<h1>(.*?)</h1>", page, re.DOTALL)
    assert html.unescape(shown) in (words, words.replace("\x00", "\ufffd"))


def test_the_policy_names_the_one_script_and_style():
    page = render_contact_sheet([pa.table({"id": ["a"]})], "Run")
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    policy = html.unescape(policy)
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not re.search(r"\son[a-z]+=", page.split("<body>")[1].split("<script")[0])
    assert not re.search(r"\sstyle=", page)
    addresses = set(re.findall(r"https?://[^\"' )]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_no_rows():
    assert render()["num_rows"] == 0
    assert render(pa.table({"id": pa.array([], pa.string())}))["id"] == []


def test_rows_that_are_left_out_are_told_of():
    table = pa.table({"id": ["a"] * 1200})
    assert "left-out" not in render_contact_sheet([table], "Run").split("<body>")[1]
    page = render_contact_sheet([table, table], "Run", left_out=1_000_000)
    assert ">2,400 rows are here; 1,000,000 more are in the manifest alone." in page


def test_the_same_tables_make_the_same_page():
    table = pa.table({"id": ["a", "b"], "x": [1, 2]})
    assert render_contact_sheet([table], "Run") == render_contact_sheet([table], "Run")


def test_ten_thousand_rows_take_seconds():
    count = 10_000
    fields = {name: [f"{name} {i}" for i in range(count)] for name in ("id", "prompt", "sha256")}
    fields["uri"] = [f"out/clips/ab/{i}/1.mp4" for i in range(count)]
    fields["model"] = ["tiny"] * count
    fields["when"] = pa.array(range(count), pa.timestamp("us", "UTC"))
    start = time.process_time()
    page = render_contact_sheet([pa.table(fields)], "Run")
    assert time.process_time() - start < 10
    assert page.count("tiny") == 1
