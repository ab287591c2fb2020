"""What the online endpoint has accepted survives whatever dies. Ends the server: its last test.

`python -m benchmarks.online_chaos` has many such rounds, of other kills and moments.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.online_chaos import Round, stop
from benchmarks.online_check import check_output
from benchmarks.online_plan import make_plan, render_undisturbed
from pipeline.checkpoints import FOLDER as CHECKPOINTS
from tests.support.command import wait_until
from tests.support.online import CLIP_S, LONG, Server

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
SEED = 25
KILLS = ("dispatcher", "pool", "cluster")
CLIPS, CALLS_A_PHASE = 3, 4


def test_what_was_accepted_survives_the_dispatcher_the_pool_and_the_whole_machine(
    server: Server, tmp_path: Path
) -> None:
    expected = render_undisturbed(tmp_path, CLIPS)
    plan = make_plan(random.Random(SEED), KILLS, CLIPS, CALLS_A_PHASE)
    this = Round(server, plan, "seeded")
    ends = this.run(expected)
    tally = this.tally
    assert not tally.violations
    assert tally.in_flight, "at the kills"
    assert tally.videos
    assert tally.batches
    client = server.client()
    late = [client.videos.create(prompt=f"late {n}", extra_body=LONG).id for n in range(3)]
    wait_until(lambda: client.videos.retrieve(late[0]).progress > 5, CLIP_S, "steps")
    assert not list(stop(server))
    assert list((server.output / CHECKPOINTS).rglob("*.json")), "what was under way is saved"
    assert not list(check_output(server.output, ends, expected, tally.strays))
