"""How Ray is started here otherwise than by itself: what its signals, groups and errors do."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import psutil
from ray import _raylet
from ray._common.utils import get_default_ray_temp_dir
from ray._private import services, worker
from ray._private import utils as ray_utils
from ray.exceptions import RayError
from ray.job_config import JobConfig

from pipeline.errors import UsageError

ASK_TIMEOUT_S = 5.0
NODE_POLL_S, NODE_WAIT_S = 0.05, 20.0
_OURS = Path(__file__).resolve().parents[1]


class _OwnPaths(list[str]):
    """Takes in the folder that these packages are in alone."""

    def extend(self, paths: Iterable[str]) -> None:
        super().extend(each for each in paths if Path(each).resolve() == _OURS)


def check_sockets() -> None:
    """Check that the files that Ray's processes here talk through may have the names they get.

    Raises:
        UsageError: the system has no names that long.
    """
    folder = get_default_ray_temp_dir()
    session = f"session_{datetime.now(UTC):%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    try:
        cast(Any, ray_utils).validate_socket_filepath(f"{folder}/{session}/sockets/plasma_store")
    except OSError as error:
        raise UsageError(
            f"{folder}: too long a path for Ray's sockets; set TMPDIR, or RAY_TMPDIR, to a shorter "
            "one, as /tmp"
        ) from error


def own_modules_alone() -> JobConfig:
    """Return how a job is to be run, without modules of the folder that it is started in.

    Ray 2.60 has workers look there first, and in the script's: a `pipeline.py` of the user's own
    would be taken for ours. A source tree that isn't installed is such a folder, and stays.
    """
    config = JobConfig()
    cast(Any, config)._py_driver_sys_path = _OwnPaths()
    return config


@contextmanager
def ended_if_broken_off() -> Generator[None]:
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
def sigterm_kept() -> Generator[None]:
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
def groups_apart() -> Generator[None]:
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
def node_found_soon() -> Generator[None]:
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
                each.hex() for each in gcs.get_all_node_info(timeout=ASK_TIMEOUT_S)
            ]:
                time.sleep(NODE_POLL_S)
        return get_node(gcs_address, node_id)

    module.get_node = look_often
    try:
        yield
    finally:
        module.get_node = get_node


@contextmanager
def worker_errors_unprinted() -> Generator[None]:
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
def native_stderr_muted() -> Generator[None]:
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
