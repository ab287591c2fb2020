"""What tests of every kind share: a Ray cluster with a leak check, an S3 server, checkpoints."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.s3 import serve_s3

signal.signal(signal.SIGINT, signal.default_int_handler)
"""Ignored behind a script's `&`, and by what is started there: tests press Ctrl-C in both."""
NUM_CPUS = 8
"""Logical ones, whatever the machine has: an actor's threads are its recipe's."""
OBJECT_STORE_BYTES = 150 << 20
LABELS = {"rushes/group": "tests"}
"""Of the one node, for recipes that ask for it."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A moto S3 server's endpoint, configured as a user would: AWS environment variables."""
    with pytest.MonkeyPatch.context() as patch, serve_s3(patch) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ray_cluster(s3_server: str) -> Iterator[None]:
    """A local Ray cluster for all tests that need one in this process; it knows the S3 server."""
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    from cluster.session import LOCAL_ENVIRONMENT

    with pytest.MonkeyPatch.context() as patch:  # not for the commands that tests start
        for name, value in LOCAL_ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        ray.init(
            "local",
            num_cpus=NUM_CPUS,
            labels=LABELS,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    assert is_token_auth_enabled()
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves an actor or a placement group of ours behind."""
    yield
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        from tests.support.leaks import check_leaks

        check_leaks()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small work: threads would only wait for each other where other tests run beside."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny family's checkpoint, built when first asked for."""
    import torch

    from tests.support.families import FAMILIES

    torch.set_num_threads(1)  # models this small gain nothing from a second
    root = tmp_path_factory.mktemp("checkpoints")

    def build(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            FAMILIES[name].build(folder)
        return folder

    return build
