"""The table of the model's card comes out of a script that runs, here on a single prompt."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from pipeline.tiny import CHECKPOINT
from pipeline.tiny.evaluate import main

CARD = (CHECKPOINT.parent / "README.md").read_text()


@pytest.mark.usefixtures("one_thread")
def test_it_prints_the_cards_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--limit", "1", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    printed = capsys.readouterr().out
    in_card = set(re.findall(r"^\| ([^|]+?) \| [\d.]+ ", CARD, re.MULTILINE))
    assert {row["figure"] for row in rows} == in_card
    for row in rows:
        assert f"| {row['figure']} | {row['reached']:.1f} {row['unit']} |" in printed
        assert row["reached"] >= 0 or math.isnan(row["reached"]), "a share of no clips is none"
    colours = [row["reached"] for row in rows if "ground colour right" in row["figure"]]
    assert colours == [100] * len(colours)
