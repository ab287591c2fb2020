"""Connect to a Ray cluster, or start one here with logical CPUs for a recipe's actors."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import ray
from ray import _raylet
from ray._private import services
from ray._private.authentication import authentication_token_setup as token_setup
from ray.exceptions import AuthenticationError, RayError

from cluster.demand import check_gpus, logical_cpus
from cluster.starting import (
    check_sockets,
    ended_if_broken_off,
    groups_apart,
    native_stderr_muted,
    node_found_soon,
    own_modules_alone,
    sigterm_kept,
    worker_errors_unprinted,
)
from pipeline.errors import UsageError
from pipeline.recipe import Recipe

CONNECT_TIMEOUT_S = 5.0
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
        UsageError: `address` is of no kind that Ray has, nothing listens there (Ray itself would
            wait for 14 minutes), or wants a token that isn't here; `auto` finds no cluster, or
            several; without an address: this machine lacks the GPUs, or short names for Ray's
            files.
    """
    if address:
        _check_address(address)
    else:
        check_gpus(recipe)
        check_sockets()


def _check_address(address: str) -> None:
    kind, mark, found = address.rpartition("://")
    if mark and kind != "ray":
        raise UsageError(
            f"--address {address}: a Ray cluster has no {kind}:// address; expected auto, or "
            "HOST:PORT as Ray's head has it, by default with port 6379"
        )
    try:
        if not mark:
            found = str(cast(Any, services).canonicalize_bootstrap_address_or_die(address))
        host, _, port = found.rpartition(":")
        if mark and not (host and port.isdecimal()):
            raise ValueError(f"expected ray://HOST:PORT, got {address}")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        if not mark:  # else Ray's client has its own server
            with native_stderr_muted():
                cast(Any, _raylet).GcsClient(address=found)
    except AuthenticationError as error:
        raise UsageError(
            f"--address {address}: this Ray cluster asks for a token: set RAY_AUTH_MODE=token, and "
            "have it in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    except (OSError, ValueError, RayError) as error:
        raise _say_silent(address, error) from error


def _say_silent(address: str, error: Exception) -> UsageError:
    why = str(error).partition("\n")[0]
    return UsageError(f"--address {address}: no Ray cluster answers: {why}")


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
    with native_stderr_muted(), worker_errors_unprinted():
        if address:
            # Ray's client runs nothing from here: a server of the cluster's is the driver.
            job = {} if "://" in address else {"job_config": own_modules_alone()}
            try:
                with sigterm_kept():
                    init(address=address, **job, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise _say_silent(address, error) from error
        else:
            for name, value in LOCAL_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            _have_token()
            num_cpus = max(os.cpu_count() or 1, math.ceil(logical_cpus(recipe, runs)))
            with sigterm_kept(), groups_apart(), ended_if_broken_off(), node_found_soon():
                init(
                    "local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    job_config=own_modules_alone(),
                    **quiet,
                )
        try:
            yield
        finally:
            cast(Any, ray).shutdown()


def _have_token() -> None:
    """Find or save the token that Ray guards a local cluster by, or have one for this run alone.

    Ray saves it at home, where others that join the cluster find it, and fails where it can't.
    """
    if os.environ.get(token_setup.AUTH_MODE_ENV_VAR, "token").lower() != "token":
        return
    setup, loader = cast(Any, token_setup), cast(Any, _raylet).AuthenticationTokenLoader.instance()
    if loader.has_token(ignore_auth_mode=True):
        return
    try:
        setup.generate_and_save_token()
    except (OSError, RuntimeError):  # no home, or none that can be written
        os.environ["RAY_AUTH_TOKEN"] = setup.generate_new_authentication_token()
    loader.reset_cache()
