"""The graph's stages as a cluster's actors run them: a row in, the row with more in it out.

Batch and online give rows to the same stages. What goes wrong with a row is data: it carries its
failure on to the end, where it is recorded. Only what ends a run raises.

torch and diffusers are imported by the actors that use them, in their constructors: they take
seconds and most of a gigabyte, and the driver and the pool's clients need neither.
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from cluster import metrics
from cluster.answers import NoGangError, PutOffError, Rendered
from cluster.client import PoolClient
from cluster.niceness import load_stepping_back
from cluster.schedule import Turn
from pipeline.documents import Commit, Failure, describe_failure
from pipeline.errors import RunEndingError
from pipeline.imports import quick_imports
from pipeline.inputs import Inputs
from pipeline.ledger import Ledger
from pipeline.model import resolve_checkpoint
from pipeline.recipe import Recipe, StageSpec
from pipeline.request import RenderRequest

if TYPE_CHECKING:
    from pipeline.develop import Developer
    from pipeline.graph import Graph

Row = dict[str, Any]
"""A clip on its way. `clip_id` and `request` (JSON) from the start; then `payload`, packed
conditioning or latents, empty where the clip is committed already; `record`, how it went so far
(JSON); `failure` (JSON), empty if none; whether it is `put_off`. At the end `outcome`, the commit
or the failure (JSON), empty if it is put off, and whether it `failed`."""

LATENTS_TRIES = 3


@dataclass(frozen=True)
class RenderSpec:
    """What every stage's actors need to know."""

    recipe: Recipe
    model_fingerprint: str


class Encode:
    """Row with a request → row with packed conditioning."""

    def __init__(self, spec: RenderSpec) -> None:
        """Load the stage's weights."""
        with quick_imports():
            from pipeline.encode import Encoder

        self.busy = threading.Lock()
        """Held while a row is worked on."""
        self._encoder = Encoder(_load_graph(spec, spec.recipe.encode), spec.recipe.encode.device)
        self._defaults = spec.recipe.request

    def warm_up(self) -> None:
        """Encode a request of the recipe's defaults: a process's first takes several times as long.

        What the model refuses here it refuses of its callers, who are told.
        """
        request = RenderRequest(prompt="a red ball", seed=0, **self._defaults.model_dump())
        row = {"clip_id": "0" * 64, "request": request.model_dump_json()}
        _step("encode", row, lambda each: {"payload": self._encoder.encode(each).to_bytes()})

    def encode(self, row: Row, ledger: Ledger) -> Row:
        """Return a row with its request encoded; what clips begin with, the ledger's store has."""

        def make(request: RenderRequest) -> Row:
            began = time.perf_counter()
            opening = Inputs(ledger.store).read_opening(request)
            conditioning = self._encoder.encode(request, opening=opening).to_bytes()
            timings = {"encode": time.perf_counter() - began}
            return {"payload": conditioning, "record": json.dumps({"timings": timings})}

        with self.busy:
            return _step("encode", row, make)


async def denoise(
    pool: PoolClient, row: Row, turn: Turn | None = None, *, is_patient: bool = True
) -> Row:
    """Row with conditioning → row with packed latents, by way of a pool.

    `turn` and `is_patient` are those of `GangPool.render`.
    """
    if row["failure"]:
        return row
    rendered, latents = await _render(pool, row, turn, is_patient)
    if not rendered.latents:
        *chain, last = rendered.reasons
        failure = describe_failure(row["clip_id"], "denoise", last, tuple(chain), rendered.attempts)
        return {**row, "payload": b"", "failure": failure.model_dump_json()}
    timings = {**json.loads(row["record"])["timings"], "denoise": rendered.denoise_s}
    record = {
        "timings": timings,
        "gang": rendered.gang,
        "layout": rendered.layout,
        "attempts": rendered.attempts,
        "device_seconds": rendered.device_seconds,
    }
    return {**row, "payload": latents, "record": json.dumps(record)}


async def denoise_once(
    pool: PoolClient, row: Row, ledger: Ledger, *, is_patient: bool = True
) -> Row:
    """As `denoise`, but that the row of a clip that is committed gets no payload.

    Ray Data may ask again for rows whose blocks were lost with a node, whatever came of them.
    """
    with suppress(FileNotFoundError):  # the pool is asked after it: its errors are its own
        await asyncio.to_thread(ledger.read_commit, row["clip_id"])
        return {**row, "payload": b"", "failure": ""}
    try:
        return await denoise(pool, row, is_patient=is_patient)
    except PutOffError:
        return {**row, "payload": b"", "put_off": True}
    except NoGangError as error:  # the others are to be made; no attempt was
        failure = describe_failure(row["clip_id"], "denoise", _cause(error), attempts=0)
        return {**row, "payload": b"", "failure": failure.model_dump_json()}


def _cause(error: Exception) -> str:
    """Return what an actor raised, without the trace that Ray makes of it."""
    return str(getattr(error, "cause", error))


async def _render(
    pool: PoolClient, row: Row, turn: Turn | None, is_patient: bool
) -> tuple[Rendered, bytes]:
    """Return what became of a clip in the pool, and its latents if there are any."""
    request = RenderRequest.model_validate_json(row["request"])
    tries = LATENTS_TRIES
    while True:
        rendered: Rendered = await pool.render(
            row["clip_id"], request, row["payload"], turn, is_patient=is_patient
        )
        tries -= 1
        try:
            return rendered, await rendered.latents[0] if rendered.latents else b""
        except RayError:  # their node is gone, or the pool's process: what it saved is not
            if not tries:
                raise


class Publish:
    """Row with latents → the commit; row with a failure → the failure, recorded."""

    def __init__(self, spec: RenderSpec) -> None:
        """Load the stage's weights."""
        self.busy = threading.Lock()
        """Held while a row is worked on."""
        self._spec = spec
        self._developer = load_stepping_back(partial(_load_developer, spec))

    def publish(self, row: Row, ledger: Ledger) -> Row:
        """Return a row's outcome, once it is in the ledger; it may be there already."""
        return {"clip_id": row["clip_id"], **self._publish(row, ledger)}

    def _publish(self, row: Row, ledger: Ledger) -> Row:
        from pipeline.publish import Denoised, Publisher

        if row["put_off"]:
            return {"outcome": "", "failed": False}
        spec = self._spec
        publisher = Publisher(spec.recipe, self._developer, spec.model_fingerprint, ledger)

        def make(request: RenderRequest) -> Row:
            denoised = Denoised(latents=row["payload"], **json.loads(row["record"]))
            return {"outcome": publisher.publish(row["clip_id"], request, denoised)}

        with self.busy:
            if not (row["payload"] or row["failure"]):
                commit = ledger.read_commit(row["clip_id"])
                return {"outcome": commit.model_dump_json(), "failed": False}
            done = _step("develop", row, make)
            if done["failure"]:
                ledger.record_failure(Failure.model_validate_json(done["failure"]))
                return {"outcome": done["failure"], "failed": True}
        commit: Commit = done["outcome"]
        metrics.measure_stages(commit.timings)
        return {"outcome": commit.model_dump_json(), "failed": False}


def _step(stage: str, row: Row, make: Callable[[RenderRequest], Row]) -> Row:
    """Return `row` with what `make` adds, or with the failure that it raised.

    Raises:
        RunEndingError: no clip is to blame.
    """
    row = {"payload": b"", "record": "{}", "failure": "", "put_off": False, **row}
    if row["failure"]:
        return row
    try:
        return {**row, **make(RenderRequest.model_validate_json(row["request"]))}
    except RunEndingError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model raises is this clip's failure
        failure = describe_failure(row["clip_id"], stage, error)
        return {**row, "payload": b"", "failure": failure.model_dump_json()}


def _load_developer(spec: RenderSpec) -> Developer:
    with quick_imports():
        from pipeline.develop import Developer

    stage = spec.recipe.develop
    return Developer(_load_graph(spec, stage), spec.recipe.finish, stage.device, stage.onednn)


def _load_graph(spec: RenderSpec, stage: StageSpec) -> Graph:
    import torch

    from pipeline.graph import Graph

    torch.set_num_threads(stage.threads)
    return Graph(spec.recipe.model, resolve_checkpoint(spec.recipe.model))
