"""Connect to a Ray cluster, or start one here with logical CPUs for a recipe's actors."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import psutil
import ray
from ray import _raylet
from ray._private import ray_constants, services, worker
from ray._private import utils as ray_utils
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.exceptions import AuthenticationError, RayError

from pipeline.errors import UsageError
from pipeline.recipe import Recipe

READ_CPUS = 1.0
"""What Ray Data asks for to look into a table and, later, to part it into rows."""
SPARE_CPUS = 2.0
"""Logical CPUs of a local cluster for that, and for what asks for a fraction of one."""
CONNECT_TIMEOUT_S = 5.0
NODE_POLL_S, NODE_WAIT_S = 0.05, 20.0
LOSS_POLL_S = 1.0
HEAR_POLL_S = 0.5
SILENCE_S = 5.0
_Resource: TypeAlias = Literal["num_cpus", "num_gpus"]
UNSAVED = "no word that it was saved: what is unfinished goes on from its last save"
_SILENT = "Ray's head gives no answer; if it stays away for a minute, this ends"
_ESSENTIAL = {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}
LOCAL_ENVIRONMENT = {
    "RAY_worker_maximum_startup_concurrency": "16",  # all of a run's actors start at once
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing reports home
    "RAY_enable_metrics_collection": "0",  # nobody scrapes a cluster that ends with its run
    "RAY_task_events_report_interval_ms": "0",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # else a VAE faults in each activation's pages anew
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""What a local cluster is started with, where the user's environment doesn't say otherwise."""


def check_cluster(recipe: Recipe, address: str | None = None) -> None:
    """Check, before anything is started or written, that there is a cluster for the recipe.

    Raises:
        UsageError: nothing listens at `address` (Ray itself would wait for 14 minutes), or wants a
            token that isn't here; `auto` finds no cluster, or several; without an address: this
            machine lacks the GPUs.
    """
    if address:
        _check_address(address)
    else:
        _check_gpus(recipe)


def _check_address(address: str) -> None:
    if "://" in address:  # Ray's client, which gives up within half a minute
        return
    try:
        found = cast(Any, services).canonicalize_bootstrap_address_or_die(address)
        host, _, port = str(found).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        with _native_stderr_muted():
            cast(Any, _raylet).GcsClient(address=str(found))
    except AuthenticationError as error:
        raise UsageError(
            f"--address {address}: this Ray cluster asks for a token: set RAY_AUTH_MODE=token, and "
            "have it in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    except (OSError, ValueError, RayError) as error:
        raise UsageError(f"--address {address}: no Ray cluster answers: {error}") from error


@contextmanager
def ray_session(recipe: Recipe, address: str | None = None, *, runs: int = 1) -> Generator[None]:
    """Hold a connection to the cluster at `address`, or to a local one made for this recipe.

    A local cluster gets as many logical CPUs as the actors of that many `runs` at a time ask for,
    however few cores the machine has: the threads that they may use are the recipe's. It ends with
    the session; a connection that was there before stays.

    Raises:
        UsageError: no cluster answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    init = cast(Any, ray).init
    quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _native_stderr_muted(), _worker_errors_unprinted():
        if address:
            try:
                with _sigterm_kept():
                    init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"--address {address}: no Ray cluster answers: {error}") from error
        else:
            for name, value in LOCAL_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            num_cpus = max(os.cpu_count() or 1, math.ceil(logical_cpus(recipe, runs)))
            with _sigterm_kept(), _groups_apart(), _ended_if_broken_off(), _node_found_soon():
                init("local", num_cpus=num_cpus, include_dashboard=False, **quiet)
        try:
            yield
        finally:
            cast(Any, ray).shutdown()


def wait_for_loss(say: Callable[[str], None]) -> None:
    """Return once this process's node is lost, with what a local cluster has left ended.

    Ray 2.60 tells a driver nothing of it, and actors that nobody calls live on. Of a GCS that is
    gone for a minute it ends the driver by itself, without a word: that it is silent is said.
    """
    here: str = cast(Any, ray).get_runtime_context().get_node_id()
    started = set[psutil.Process]()
    while any(node["NodeID"] == here and node["Alive"] for node in _ask_nodes(say)):
        # Once the raylet is dead, what it has started is nobody's child.
        started = {each for each in started if each.is_running()}
        started |= set(psutil.Process().children(recursive=True))
        time.sleep(LOSS_POLL_S)
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def is_gone() -> bool:
    """Return whether the local cluster that was started here has ended, though nobody ended it.

    As where systemd stops a service: by default it tells every process of it at once.
    """
    node = getattr(cast(Any, worker).global_worker, "node", None)
    dead = {name for name, _ in node.dead_processes()} if node else set[str]()
    return not dead.isdisjoint(_ESSENTIAL)


def hear(answer: Any, timeout_s: float) -> Any:
    """Return an actor's answer; None if there is none in time, or the local cluster is lost."""
    until = time.monotonic() + timeout_s
    with suppress(RayError):
        while time.monotonic() < until and not is_gone():
            if cast(Any, ray).wait([answer], timeout=HEAR_POLL_S)[0]:
                return cast(Any, ray).get(answer)
    return None


def _ask_nodes(say: Callable[[str], None]) -> list[dict[str, Any]]:
    silent = threading.Timer(SILENCE_S, say, (_SILENT,))
    silent.daemon = True
    silent.start()
    try:
        return cast(Any, ray).nodes()
    finally:
        silent.cancel()


def describe_shortage(recipe: Recipe, read_cpus: float = 0.0) -> str:
    """Return what the cluster at hand lacks of the least for a recipe; nothing if it is there.

    A batch asks for `READ_CPUS` beside them. A gang that is to be on one node needs one that large.
    """
    asked = {"CPU": _least(recipe, "num_cpus") + read_cpus, "GPU": _least(recipe, "num_gpus")}
    if short := _compare(cast(Any, ray).cluster_resources(), asked):
        return f"the cluster has {short} that the recipe asks for; the rest waits for more"
    nodes = [node["Resources"] for node in cast(Any, ray).nodes() if node["Alive"]]
    for gang in recipe.gangs:
        ranks = gang.layout.ranks
        whole = {"CPU": ranks * gang.num_cpus, "GPU": ranks * gang.num_gpus}
        if gang.placement == "STRICT_PACK" and all(_compare(node, whole) for node in nodes):
            return (
                f"no node has {whole['CPU']:g} CPUs and {whole['GPU']:g} GPUs for all ranks of gang"
                f' {gang.name}; it waits for one. placement = "PACK" would take several nodes'
            )
    return ""


def describe_wait(recipe: Recipe) -> str:
    """Return what others hold of what a batch asks for beside gangs; nothing if it is all free.

    Ray Data 2.60 says nothing of it, and waits for as long as it takes.
    """
    asked = {
        "CPU": READ_CPUS + _asked_by_stages(recipe, "num_cpus"),
        "GPU": _asked_by_stages(recipe, "num_gpus"),
    }
    if short := _compare(cast(Any, ray).available_resources(), asked):
        return f"only {short} that encode, develop and reading ask for are free; waiting for more"
    return ""


def _compare(here: dict[str, float], asked: dict[str, float]) -> str:
    return " and ".join(
        f"{here.get(kind, 0):g} of {number:g} {kind}s"
        for kind, number in asked.items()
        if number > here.get(kind, 0)
    )


def logical_cpus(recipe: Recipe, runs: int = 1) -> float:
    """Return how many CPUs all actors of so many runs on one pool ask for, with some to spare."""
    gangs = sum(each.count * each.layout.ranks * each.num_cpus for each in recipe.gangs)
    return gangs + runs * (_asked_by_stages(recipe, "num_cpus") + SPARE_CPUS)


def _least(recipe: Recipe, what: _Resource) -> float:
    """Return what the stages, the gangs that are kept and a gang of any other shape ask for."""
    kept, others = 0.0, [0.0]
    for each in recipe.gangs:
        number = sum(map(each.is_kept, range(each.count)))
        asked = each.layout.ranks * getattr(each, what)
        kept += number * asked
        if not number:
            others.append(asked)
    return _asked_by_stages(recipe, what) + kept + max(others)


def _asked_by_stages(recipe: Recipe, what: _Resource) -> float:
    return sum(each.workers * getattr(each, what) for each in (recipe.encode, recipe.develop))


def _check_gpus(recipe: Recipe) -> None:
    """Say at once that this machine's GPUs are too few: nobody will add one while we wait."""
    needed = _least(recipe, "num_gpus")
    here = _count_gpus() if needed else 0
    if needed > here:
        raise UsageError(
            f"recipe {recipe.name} asks for {needed:g} GPUs at least, this machine has {here}; "
            "name a cluster by --address, or ask for less: --set gangs.0.count=1"
        )


def _count_gpus() -> int:
    """Return how many GPUs the cluster at hand has, or a local one would have if started."""
    if ray.is_initialized():
        return int(cast(Any, ray).cluster_resources().get("GPU", 0))
    manager = cast(Any, get_accelerator_manager_for_resource("GPU"))
    visible = manager.get_current_process_visible_accelerator_ids()
    count: int = manager.get_current_node_num_accelerators()
    return count if visible is None else min(count, len(visible))


@contextmanager
def _ended_if_broken_off() -> Generator[None]:
    """End, where the block is broken off, the processes that it had begun to start.

    Ray 2.60 knows nothing of one that it was starting when a signal came: a raylet without its GCS
    lives on for a minute.
    """
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    try:
        yield
    except BaseException:
        for each in psutil.Process().children(recursive=True):
            if each.pid not in before:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        raise


@contextmanager
def _sigterm_kept() -> Generator[None]:
    """Have SIGTERM go on to whoever handles it, if anybody does, while Ray is started and then.

    Ray 2.60 puts a handler in its place, whose SystemExit may come while a lock is held, or where
    it is passed over: the run then goes on, or hangs. Below Python it puts another, which aborts
    the process where it hasn't ended within 3 s of the signal.
    """
    handler = signal.getsignal(signal.SIGTERM)
    utils = cast(Any, ray_utils)
    set_handler: Any = utils.set_sigterm_handler
    is_handled = callable(handler) and threading.current_thread() is threading.main_thread()
    if is_handled:
        utils.set_sigterm_handler = _leave_handler
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        if is_handled and callable(signal.getsignal(signal.SIGTERM)):  # or the first has come
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _groups_apart() -> Generator[None]:
    """Have what Ray starts here live until this process ends it, in process groups of its own.

    A terminal that is closed, `timeout` and shells tell all of a group; Ray 2.60 keeps Ctrl-C alone
    from what it starts, and its raylet, which must save what gangs have under way, ends at SIGTERM.
    (Elsewhere than on Linux it ends what it started by its group, where this process is killed.)
    """
    if sys.platform != "linux":
        yield
        return
    module = cast(Any, services)
    popen: Any = module.ConsolePopen
    module.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        module.ConsolePopen = popen


@contextmanager
def _node_found_soon() -> Generator[None]:
    """Have Ray, while it starts here, see soon that its node is there: Ray 2.60 looks every second.

    How long it may take stays Ray's to say.
    """
    module = cast(Any, services)
    get_node: Any = module.get_node

    def look_often(gcs_address: str, node_id: str) -> Any:
        gcs = cast(Any, _raylet).GcsClient(address=gcs_address)
        until = time.monotonic() + NODE_WAIT_S
        with suppress(RayError):  # Ray itself looks again
            while time.monotonic() < until and node_id not in [
                each.hex() for each in gcs.get_all_node_info(timeout=CONNECT_TIMEOUT_S)
            ]:
                time.sleep(NODE_POLL_S)
        return get_node(gcs_address, node_id)

    module.get_node = look_often
    try:
        yield
    finally:
        module.get_node = get_node


@contextmanager
def _worker_errors_unprinted() -> Generator[None]:
    """Have Ray, once connected, print nothing of errors in its processes: who uses them tells.

    Ray 2.60 has no switch for it: `log_to_driver` is for what they print themselves.
    """
    module = cast(Any, worker)
    listen: Any = module.listen_error_messages
    module.listen_error_messages = _listen_to_nothing
    try:
        yield
    finally:
        module.listen_error_messages = listen


def _listen_to_nothing(*_: object) -> None: ...


def _leave_handler(_: object) -> None: ...


@contextmanager
def _native_stderr_muted() -> Generator[None]:
    """Keep what Ray's C++ writes to stderr off the terminal; its log files have it too.

    Python's own stderr stays where it was.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    python_stderr = sys.stderr
    with (
        open(os.devnull, "wb") as nowhere,  # noqa: PTH123 - a device, not a path
        os.fdopen(terminal, "w", buffering=1) as kept,
    ):
        os.dup2(nowhere.fileno(), 2)
        if python_stderr is sys.__stderr__:
            sys.stderr = kept
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(terminal, 2)
