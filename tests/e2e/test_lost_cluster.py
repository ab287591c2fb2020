"""A run whose own Ray loses its GCS: it ends with that word, and leaves a record and no process."""

from __future__ import annotations

from pathlib import Path

from pipeline.runs import read_runs
from pipeline.store import ObjectStore
from tests.support.command import (
    ONE_GANG,
    find_children,
    find_named,
    find_program,
    is_alive,
    start_rushes,
    wait_until,
    write_table,
)

START_S, END_S = 120.0, 50.0
SLOW = (*ONE_GANG, "--set", "request.num_inference_steps=100")


def test_a_run_whose_gcs_dies_ends_with_that_word(tmp_path: Path) -> None:
    """Ray itself would end it without a word, after a minute in which no clip is committed."""
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball", "a blue ball"])
    with start_rushes("render", table, "-o", "out", *SLOW, cwd=tmp_path) as run:
        wait_until(lambda: find_named(run.pid, "ray::RankWorker.advance"), START_S, "first steps")
        started = find_children(run.pid)
        gcs = find_program(run.pid, "gcs_server")
        assert gcs
        gcs.kill()
        stdout, stderr = run.communicate(timeout=END_S)
        assert run.returncode == 1, stdout
        assert not [each for each in started if is_alive(each)]
    said = "the run broke: its Ray has ended, or gives no answer"
    assert stderr.splitlines()[0] == f"rushes: {said}"
    assert "stopping" not in stdout
    (record,) = read_runs(ObjectStore(tmp_path / "out"))
    assert (record.ended, f"the run broke: {record.reason}") == ("broken", said)
