"""`PoolClient`: the pool as one of its tenants sees it; `join_pool` finds it, or makes it."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from cluster.answers import PoolClosedError
from cluster.pool import GangPool
from cluster.schedule import Turn
from pipeline.checkpoints import Checkpoints
from pipeline.identity import digest
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest

NAMESPACE = "rushes"
POOL_RESTARTS = 10
JOIN_TIMEOUT_S = 300.0
RETRY_S = 0.2
LOOK_TIMEOUT_S = 10.0
"""For a pool's `progress`, which it tells at once."""
HUNG_LOOKS = 12
"""After so many in a row without an answer the pool's process hangs."""
ON_HEAD_NODE = {HEAD_NODE_RESOURCE_NAME: 0.001}
"""What an actor asks for that belongs on the one node that no spot market takes back."""


@dataclass(frozen=True)
class PoolClient:
    """A pool's handle and whose calls they are; every method returns a reference to its answer.

    What the calls do and raise, `GangPool` says.
    """

    actor: Any
    checkpoints: Checkpoints

    def render(
        self,
        clip_id: str,
        request: RenderRequest,
        conditioning: bytes,
        turn: Turn | None = None,
        *,
        is_patient: bool = True,
    ) -> Any:
        """Render a clip's latents: a `Rendered`."""
        return self.actor.render.remote(
            self.checkpoints, clip_id, request, conditioning, turn, is_patient=is_patient
        )

    def progress(self) -> Any:
        """Tell how it goes, a `PoolProgress`; a sign of life, without which a tenant is let go."""
        return self.actor.progress.remote(self.checkpoints)

    def cancel(self, clip_id: str) -> Any:
        """Give a clip up."""
        return self.actor.cancel.remote(self.checkpoints, clip_id)

    def leave(self) -> Any:
        """Have all that is under way saved, and leave; the last `PoolProgress`, or None."""
        return self.actor.leave.remote(self.checkpoints)

    def restart(self) -> None:
        """End the process of a pool that hangs: Ray starts it anew and asks it again.

        Clips go on from where they were last saved.
        """
        with suppress(RayError):  # of a cluster that is itself away
            ray.kill(self.actor, no_restart=False)


def name_pool(recipe: Recipe, model_fingerprint: str) -> str:
    """Return the name of the pool that runs of a recipe share, by what it does for them alike.

    Which gang takes a clip is among it, and so is what counts its tokens.
    """
    shared = recipe.model_dump(include={"model", "gangs", "pool", "checkpoint"}, mode="json")
    counted = recipe.limits.model_dump(include={"size_multiple", "frame_multiple"})
    return f"pool-{digest({'model': model_fingerprint, 'recipe': shared, 'limits': counted})[:16]}"


def join_pool(recipe: Recipe, checkpoints: Checkpoints) -> PoolClient:
    """Enter the pool that this cluster has for a recipe; if it has none, make it.

    Ray starts it anew where its process dies.

    Raises:
        ActorDiedError: its process can't run it, and says why.
        TimeoutError: Ray can't start it, or it gives no answer.
    """
    name = name_pool(recipe, checkpoints.model_fingerprint)
    options = cast(Any, ray.remote(GangPool)).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        resources=ON_HEAD_NODE,
        max_concurrency=10_000,
        max_restarts=POOL_RESTARTS,
        max_task_retries=-1,
    )
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while True:
        actor = options.remote(recipe, name)
        try:
            ray.get(actor.enter.remote(checkpoints), timeout=deadline - time.monotonic())
        except (PoolClosedError, ActorDiedError) as error:  # the one that was there has just ended
            is_unable = isinstance(error, ActorDiedError) and error.actor_init_failed
            if is_unable or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
        except GetTimeoutError as error:
            raise TimeoutError(
                f"pool {name} gives no answer within {JOIN_TIMEOUT_S:.0f} s; where `ray list "
                "actors` has it as ALIVE, end its process: Ray starts it anew"
            ) from error
        else:
            return PoolClient(actor, checkpoints)
