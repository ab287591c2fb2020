"""What a cluster has, against what a recipe asks for; and that its loss is seen."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import psutil
import pytest
import ray

from cluster.demand import SPARE_CPUS, describe_shortage, logical_cpus
from cluster.loss import SILENCE_S
from cluster.session import check_cluster
from jobs.recipes import find_recipe
from pipeline.errors import UsageError
from tests.conftest import NUM_CPUS
from tests.support.command import (
    find_children,
    find_program,
    is_alive,
    make_environment,
)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_is_too_small_is_told_of() -> None:
    assert describe_shortage(find_recipe()) == ""
    gangs = ["gangs.0.count=20", "gangs.0.num_cpus=2", "gangs.0.num_gpus=1"]
    recipe = find_recipe(overrides=gangs)
    asked = 40 + recipe.encode.num_cpus + recipe.develop.num_cpus
    assert describe_shortage(recipe) == (
        f"the cluster has {NUM_CPUS} of {asked:g} CPUs and 0 of 20 GPUs that the recipe asks for; "
        "the rest waits for more"
    )


@pytest.mark.usefixtures("ray_cluster")
def test_a_gang_that_is_larger_than_any_node_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = ray.nodes()
    (node,) = (each for each in nodes if each["Alive"])
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, node])  # another one like it
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2 * NUM_CPUS})
    gangs = "gangs=[{{name='pair', tensor=2, num_cpus={}, placement='{}'}}]"
    whole, half = NUM_CPUS / 2 + 1, NUM_CPUS / 2
    told = describe_shortage(find_recipe(overrides=[gangs.format(whole, "STRICT_PACK")]))
    assert told.startswith(f"no node has {2 * whole:g} CPUs and 0 GPUs for all ranks of gang pair;")
    assert describe_shortage(find_recipe(overrides=[gangs.format(whole, "PACK")])) == ""
    assert describe_shortage(find_recipe(overrides=[gangs.format(half, "STRICT_PACK")])) == ""


def test_a_local_cluster_has_room_for_every_actor() -> None:
    recipe = find_recipe("tiny-cpu", ["gangs.0.count=3", "encode.num_cpus=2"])
    run = 2 + recipe.develop.num_cpus + SPARE_CPUS
    assert logical_cpus(recipe) == 3 + run
    assert logical_cpus(recipe, runs=2) == 3 + 2 * run, "the gangs are one pool's"


_WAITS = """
import ray, threading
from functools import partial
from cluster.loss import LOSS_POLL_S, wait_for_loss
from cluster.session import ray_session
from jobs.recipes import find_recipe

@ray.remote(num_cpus=0)
class Idle:
    def is_there(self): return True

with ray_session(find_recipe()):
    idle = Idle.remote()
    ray.get(idle.is_there.remote())
    threading.Timer(2 * LOSS_POLL_S, lambda: print("waits", flush=True)).start()
    wait_for_loss(partial(print, flush=True))
print("lost", flush=True)
"""
_HASTE = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "2",
}
"""A dead raylet is seen as such in a second, not a quarter of a minute."""


@contextmanager
def _running(
    script: str, **environment: str
) -> Generator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**make_environment(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    left: list[psutil.Process] = []
    try:
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
        left = find_children(process.pid)
        yield process, left
    finally:
        for each in left:
            if is_alive(each):
                each.kill()
        process.kill()


def test_whose_raylet_dies_hears_of_it_and_leaves_no_actor_behind() -> None:
    with _running(_WAITS, **_HASTE) as (process, left):
        raylet = find_program(process.pid, "raylet")
        assert raylet
        raylet.kill()
        assert process.communicate(timeout=60)[0].endswith("lost\n")
        assert not [each for each in left if is_alive(each)]


def test_whose_gcs_dies_hears_of_it_before_ray_ends_it() -> None:
    with _running(_WAITS) as (process, left):
        gcs = find_program(process.pid, "gcs_server")
        assert gcs
        gcs.kill()
        assert process.communicate(timeout=60)[0] == "lost\n"
        assert not [each for each in left if is_alive(each)]


def test_a_head_that_gives_no_answer_is_told_of_then_given_up() -> None:
    script = f"import cluster.loss; cluster.loss.LOST_S = {SILENCE_S + 1}\n{_WAITS}"
    with _running(script) as (process, left):
        gcs = find_program(process.pid, "gcs_server")
        assert gcs
        gcs.suspend()
        assert re.fullmatch(
            r"Ray's head gives no answer.*\nlost\n", process.communicate(timeout=60)[0]
        )
        assert not [each for each in left if is_alive(each)]


_ASKS = """
import ray, time
from cluster.loss import hear, is_gone
from cluster.session import ray_session
from jobs.recipes import find_recipe

@ray.remote(num_cpus=0)
class Idle:
    def answer(self): return 42
    def wait(self): time.sleep(600)

with ray_session(find_recipe()):
    idle = Idle.remote()
    print("waits" if (hear(idle.answer.remote(), 60), is_gone()) == (42, False) else "", flush=True)
    print(hear(idle.wait.remote(), 600), is_gone(), flush=True)
"""


def test_who_waits_for_an_actor_waits_no_longer_than_its_cluster_lives() -> None:
    """As where systemd ends a service: all its processes hear SIGTERM at once."""
    with _running(_ASKS) as (process, _):
        for name in ("gcs_server", "raylet"):
            lost = find_program(process.pid, name)
            assert lost
            lost.kill()
        assert process.communicate(timeout=60)[0] == "None True\n"
        assert process.returncode == 0


_STOPS = """
import signal, time
from cluster.session import ray_session
from jobs.recipes import find_recipe

def stop(*_): raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
with ray_session(find_recipe()):
    try:
        print("waits", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(5)
print("ended", flush=True)
"""


def test_who_heeds_sigterm_may_take_its_time() -> None:
    with _running(_STOPS) as (process, _):
        process.terminate()
        assert process.communicate(timeout=60)[0] == "ended\n"
        assert process.returncode == 0


def test_gangs_that_come_and_go_need_a_place_each_shape_for_one() -> None:
    """Three gangs that stay, encode and develop on one GPU, and a gang of four for long clips."""
    with pytest.raises(UsageError, match="asks for 8 GPUs at least, this machine has 0"):
        check_cluster(find_recipe("wan22-a14b-8x80gb"))
