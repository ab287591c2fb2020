"""The graph as a Ray Serve application: dispatcher → encode, pool of gangs, develop and commit.

The stages are those of a batch; here they are deployments, which Serve starts anew where they die.
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from typing import Any, cast

from ray import serve

from cluster.batches import LineFormat
from cluster.client import ON_HEAD_NODE
from cluster.dispatch import Dispatcher
from cluster.stages import Encode, Publish, RenderSpec, Row
from cluster.webhook import WebhookTarget
from pipeline.batches import BatchLimits
from pipeline.documents import OutputIdentity
from pipeline.ledger import Ledger
from pipeline.recipe import StageSpec
from pipeline.store import ObjectStore

MANY = 10_000
"""Calls that may be under way at once where each is a moment's work, or a wait."""
DISPATCHER = "Dispatcher"


class _Encode(Encode):
    def __init__(self, spec: RenderSpec) -> None:
        super().__init__(spec)
        self.warm_up()

    async def __call__(self, row: Row, ledger: Ledger) -> Row:
        await asyncio.to_thread(ledger.check_epoch)  # before a gang works for it
        return await asyncio.to_thread(self.encode, row, ledger)


class _Publish(Publish):
    async def __call__(self, row: Row, ledger: Ledger) -> Row:
        return await asyncio.to_thread(self.publish, row, ledger)


def bind_dispatcher(
    spec: RenderSpec,
    store: ObjectStore,
    identity: OutputIdentity,
    max_queued: int,
    max_per_minute: int,
    target: WebhookTarget | None,
    lines: LineFormat,
    limits: BatchLimits,
) -> Any:
    """Return the application that renders; `serve.run` it, or bind it to an ingress."""
    encode = deploy_stage(_Encode, "Encode", spec.recipe.encode).bind(spec)
    publish = deploy_stage(_Publish, "Publish", spec.recipe.develop).bind(spec)
    dispatcher = cast(Any, serve.deployment)(
        Dispatcher,
        name=DISPATCHER,
        num_replicas=1,
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD_NODE},
    )
    return dispatcher.bind(
        spec, store, identity, encode, publish, max_queued, max_per_minute, target, lines, limits
    )


def deploy_stage(stage: type, name: str, resources: StageSpec) -> Any:
    """Return a stage's deployment, with what a recipe gives it."""
    return cast(Any, serve.deployment)(
        stage,
        name=name,
        num_replicas=resources.workers,
        max_ongoing_requests=2,
        ray_actor_options={
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "label_selector": dict(resources.label_selector),
        },
    )
