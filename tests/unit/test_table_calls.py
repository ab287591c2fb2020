"""Bad calls stop at once with one clear line; totals, ids and duplicates of good ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.identity import clip_id, digest_renderer
from pipeline.recipe import Recipe
from tests.support.tables import RECIPE, make_plan, plan_columns


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def refuse(*sources: Path | str, recipe: Recipe = RECIPE) -> str:
    with pytest.raises(UsageError) as caught:
        make_plan(*sources, recipe=recipe)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_no_such_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    assert refuse(missing) == f"{missing}: no such file or folder"
    assert "has no name" in refuse("")  # as "$TABLE" is where it isn't set


def test_empty_folder_and_glob(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("prompt")
    suffixes = ".parquet, .pq, .csv, .jsonl, .ndjson, .json"
    assert refuse(tmp_path) == f"{tmp_path}: the folder holds no {suffixes} file"
    assert refuse(tmp_path / "*") == f"{tmp_path}/*: no {suffixes} file matches"
    assert "unknown suffix" in refuse(tmp_path / "notes.txt")


def test_unreachable_stores() -> None:
    assert "nowhere://x" in refuse("nowhere://x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"prompt,width\na,1\n", "is not a Parquet file (it doesn't begin with PAR1)"),
        ("a.parquet", b"PAR1 and then nothing", "is not a readable Parquet file"),
        ("a.parquet", b"", "is empty (0 bytes)"),
        ("a.csv", b"PAR1....", "is a Parquet file; give it the suffix .parquet"),
        ("a.csv", b"prompt,x\na,1\nb,2,3\n", "line 3 has 3 values, expected 2"),
        ("a.csv", b"prompt,x\na\n", "line 2 has 1 values, expected 2; a missing value needs its"),
        ("a.csv", b'prompt,x\na,1\n"b,2\nc,3\n', "a.csv: line 3: a quotation mark opens in it"),
        ("a.csv", b'prompt,x\na,"1\nb,2\nc,3\n', "a.csv: line 2: a quotation mark opens in it"),
        ("a.csv", b'prompt,x\r\na,1\r\nb,"2\r\nc,3', "a.csv: line 3: a quotation mark opens"),
        ("a.csv", b"prompt,,\na,,2\n", "have values but no name in the header: 3 (counted from 1)"),
        ("a.csv", b",prompt\n5,a\n5,b\n", "have values but no name in the header: 1 (counted"),
        ("a.csv", b"prompt,x,x\na,1,2\n", "column 'x' occurs twice"),
        ("a.csv", b"prompt,x\n", "has no rows"),
        ("a.csv", b"prompt,x", "has no rows"),
        ("a.csv", b"prompt;x\na, b;1\n", "its columns are parted by ';'; expected commas"),
        ("a.csv", b"\n\nprompt\tx\na, b\t1\n", "its columns are parted by '\\t'; expected commas"),
        ("a.csv", b'prompt;"x, y"\na;1\n', "its columns are parted by ';'; expected commas"),
        ("a.csv", "prompt,x\na,b\n".encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "line 1 has the key 'prompt' twice"),
        ("a.jsonl", b'{"prompt": "a", "x": {"k": 1, "k": 2}}\n', "line 1 has the key 'k' twice"),
        (
            "a.json",
            b'{\n "prompt": "a"\n}\n',
            "(pandas: to_json(path, orient='records', lines=True))",
        ),
        ("a.json", b'{"prompt": {"0": "a", "1": "b"}}', "orient='records', lines=True"),
        ("a.json", b'{"columns": ["prompt"], "data": [["a"]]}', "orient='records', lines=True"),
        ("a.jsonl", b"5\n", "line 1 is not a JSON object"),
        ("a.json", b'[{"prompt": "a"}, 5]', "is not a JSON object"),
        ("a.jsonl", b"[" * 100_000, "is not JSON"),
        ("a.jsonl", b"\n\n", "a.jsonl is empty"),
        ("a.json", b"[]", "a.json is empty"),
        ("a.csv", b" \n", "a.csv is empty"),
        ("a.jsonl", b"{}\n", "no column 'prompt'"),
    ],
)
def test_a_file_that_is_not_what_its_suffix_says(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refuse(tmp_path / name)


def test_a_truncated_parquet_file_is_named_in_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "ads" / "a.parquet", prompt=["a"])
    whole = write(tmp_path / "ads" / "b.parquet", prompt=["b"] * 1000).read_bytes()
    (tmp_path / "ads" / "b.parquet").write_bytes(whole[:-20])
    assert "ads/b.parquet is not a readable Parquet file" in refuse(tmp_path / "ads")


def test_no_prompt_column_names_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=["a"], width=[64])
    assert refuse(path) == f"{path} has no column 'prompt'; its columns are 'text', 'width'"
    for near in ("Prompt", "prompts", "PROMPT"):
        assert refuse(write(path, **{near: ["a"]})).endswith(f"; rename {near!r} to 'prompt'")


def test_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", prompt=pa.array([], pa.string()))
    assert refuse(path) == f"{path} has no rows"


def test_labels_of_no_common_type(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", prompt=["0"], x=pa.nulls(1))
    a = write(tmp_path / "a.parquet", prompt=["a"], x=[1])
    b = write(tmp_path / "b.parquet", prompt=["b"], x=["one"])
    assert refuse(tmp_path) == (
        f"label 'x' is int64 in {a}, and string in {b}; make it the same type in both"
    )
    write(b, prompt=["b"], x=[{"y": 1}])
    assert f"in {a}, and struct<y: int64> in {b}" in refuse(tmp_path)
    write(a, prompt=["a"], x=[2**53 + 1])
    write(b, prompt=["b"], x=[0.5])
    write(tmp_path / "c.parquet", prompt=["c"], x=[1], y=[0.5])
    assert refuse(tmp_path) == (
        f"label 'x' is double in {b}, and int64 in {a}, with a value that double can't hold "
        "(Integer value 9007199254740993 not in range: -9007199254740992 to 9007199254740992); "
        "make it the same type in both"
    )


def test_the_same_table_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", prompt=["a"])
    assert "is given twice" in refuse(path, path)
    assert f"is given by {path} too" in refuse(path, tmp_path)
    assert "give each table once" in refuse(path, f"{tmp_path}/../{tmp_path.name}/a.parquet")
    assert "give each table once" in refuse(path, f"file://{path}")


def test_the_same_id_on_two_requests(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", prompt=["x", "y"], id=["1", "2"])
    b = write(tmp_path / "b.parquet", prompt=["x", "", "z"], id=pa.array([1, 2, 2]))
    assert refuse(a, b) == (
        f"id '2' stands for two different requests: {a} row 1 and {b} row 2 (rows count from 0); "
        "give each its own id"
    )
    same = write(tmp_path / "c.parquet", prompt=["x", "x", ""], id=["1", "1", "1"])
    assert make_plan(a, same).duplicates == 2


def test_a_recipe_that_breaks_its_own_limits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", prompt=["a"])

    def change(**values: Any) -> Recipe:
        return RECIPE.model_copy(update={"request": RECIPE.request.model_copy(update=values)})

    assert refuse(path, recipe=change(num_frames=18)) == (
        "recipe test: request.num_frames: got 18, expected 4k+1 from 5 to 81; nearest is 17"
    )
    assert "nearest is 192x192" in refuse(path, recipe=change(width=256, height=256))


def test_a_recipe_whose_limits_exclude_everything(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", prompt=["a"])
    for limits, says in (
        ({"max_side": 15, "min_side": 1}, "no width: from 1 to 15 nothing is a multiple of 16"),
        ({"min_frames": 90}, "no num_frames: from 90 to 81 nothing is 4k+1"),
        ({"max_fps": 0.5}, "no fps: from 1 to 0.5 nothing is a number"),
    ):
        changed = RECIPE.limits.model_copy(update=limits)
        message = refuse(path, recipe=RECIPE.model_copy(update={"limits": changed}))
        assert says in message


def test_totals_count_a_repeated_clip_once(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", prompt=["x", "y", " x ", ""], num_frames=[17, 33, 17, 5])
    b = write(tmp_path / "b.parquet", prompt=["x"])
    plan = make_plan(a, b)
    assert (plan.rows, plan.valid, plan.rejected) == (5, 4, 1)
    assert (plan.clips, plan.duplicates) == (2, 2)
    assert (plan.frames, plan.pixels) == (50, 50 * 64 * 64)
    assert plan.duration_s == 50 / 8
    assert [table.source for table in plan.tables] == [str(a), str(b)]


def test_requests_come_longest_first_and_match_their_ids(tmp_path: Path) -> None:
    frames = [17, 81, 5, 81, 33]
    plan = plan_columns(tmp_path, num_frames=frames)
    requests = plan.requests()
    assert [each.num_frames for each in requests.values()] == sorted(frames, reverse=True)
    assert list(requests)[:2] == sorted(list(requests)[:2])
    for key, request in requests.items():
        assert key == clip_id(request, digest_renderer("f" * 64, RECIPE.finish))


def test_reasons_are_grouped_over_all_tables(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", prompt=["x", None, "z"], width=[64, 65, 66])
    b = write(tmp_path / "b.parquet", prompt=[""], width=[0])
    reasons = make_plan(a, b).reasons
    assert [(each.count, each.source, each.row) for each in reasons] == [
        (3, str(a), 1),
        (2, str(a), 1),
    ]
    assert reasons[0].kind == "width: expected a multiple of 16 from 32 to 256"
    assert reasons[1].example == "prompt: got null, expected some text"


def test_names_are_file_safe_stable_and_distinct(tmp_path: Path) -> None:
    odd = write(tmp_path / "Frühling & Ads [v2].parquet", prompt=["a"])
    other = write(tmp_path / "b" / "Frühling & Ads [v2].parquet", prompt=["a"])
    first, second = (table.name for table in make_plan(odd, other).tables)
    assert re.fullmatch(r"Fr-hling-Ads-v2-[0-9a-f]{8}", first)
    assert first != second
    assert make_plan(f"file://{odd}").tables[0].name == first
    assert make_plan(f"{tmp_path}/b/../{odd.name}").tables[0].name == first


def test_planning_ends_as_it_should(tmp_path: Path) -> None:
    """Arrow's threads once aborted one process in ten, at its end, with its work done."""
    pq.write_table(pa.table({"prompt": ["a", "b"], "city": ["x", "y"]}), tmp_path / "a.parquet")
    code = "import sys; from tests.support.tables import make_plan; make_plan(sys.argv[1])"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    started = [subprocess.Popen(command, cwd=root) for _ in range(5)]
    assert [each.wait() for each in started] == [0] * 5
