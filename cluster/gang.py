"""`Gang`: ranks that hold one model together and live and die as one."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Self, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.rank import Progress, RankWorker
from pipeline.errors import UsageError
from pipeline.recipe import GangShape, ModelSpec, PoolSpec
from pipeline.request import RenderRequest

_T = TypeVar("_T")
CHECK_TIMEOUT_S = 30.0


class GangDiedError(Exception):
    """A rank died or hung: the gang is gone, its clips are not to blame."""


class UnusableModelError(Exception):
    """The checkpoint can't be loaded, by this gang or any other."""


class ClipError(Exception):
    """The model refused this clip: the gang is well, the clip has failed."""


class Gang:
    """One rank in a placement group of its own; made by `Gang.create`, ended by `kill`."""

    def __init__(self, name: str, shape: GangShape, group: PlacementGroup, rank: Any) -> None:
        """Hold what `create` made."""
        self.name = name
        self.shape = shape
        self._group = group
        self._rank: Any = rank

    @classmethod
    async def create(cls, name: str, model: ModelSpec, shape: GangShape, pool: PoolSpec) -> Self:
        """Reserve resources, start the ranks and load their weights.

        Raises:
            GangDiedError: no resources, or no weights, within `pool.start_timeout_s`.
            UnusableModelError: the checkpoint is at fault.
        """
        bundle = {"CPU": shape.num_cpus, "GPU": shape.num_gpus}
        group = placement_group(
            [{kind: amount for kind, amount in bundle.items() if amount}], strategy="STRICT_PACK"
        )
        gang = cls(name, shape, group, None)
        try:
            await _wait(group.ready(), pool.start_timeout_s, f"{name}: resources {bundle}")
            gang._rank = (
                cast(Any, ray.remote(RankWorker))
                .options(
                    num_cpus=shape.num_cpus,
                    num_gpus=shape.num_gpus,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group),
                )
                .remote(model, shape)
            )
            await _wait(gang._rank.load.remote(), pool.start_timeout_s, f"{name}: weights")
        except RayTaskError as error:
            gang.kill()
            if isinstance(error.cause, UsageError):
                raise UnusableModelError(str(error.cause)) from error
            raise GangDiedError(f"{name}: weights: {error.cause}") from error
        except BaseException:
            gang.kill()
            raise
        return gang

    async def start(
        self, key: str, request: RenderRequest, conditioning: Any, timeout_s: float
    ) -> Progress:
        """Start a clip's session; `conditioning` refers to packed `Conditioning`."""
        call = self._rank.start.remote(key, request, [conditioning])
        return await self._blame(key, call, timeout_s)

    async def advance(self, key: str, max_steps: int, timeout_s: float) -> Progress:
        """Make up to `max_steps` steps of a clip.

        Raises:
            GangDiedError: a rank died, or gave no answer within `timeout_s`.
            ClipError: the model refused the clip.
        """
        return await self._blame(key, self._rank.advance.remote(key, max_steps), timeout_s)

    async def finish(self, key: str, timeout_s: float) -> Any:
        """Return a reference to the packed latents of a finished clip."""
        latents = self._rank.finish.remote(key)
        await self._blame(key, self._rank.drop.remote(key), timeout_s)
        return latents

    def kill(self) -> None:
        """End all ranks and give the resources back; may be called twice."""
        if self._rank is not None:
            ray.kill(self._rank, no_restart=True)
            self._rank = None
        remove_placement_group(self._group)

    async def _blame(self, key: str, call: Any, timeout_s: float) -> Any:
        """Await a rank's answer and tell a clip's error from the gang's."""
        try:
            return await _wait(call, timeout_s, f"{self.name}: {key[:12]}")
        except RayTaskError as error:
            try:
                await _wait(self._rank.drop.remote(key), CHECK_TIMEOUT_S, f"{self.name}: drop")
                await _wait(self._rank.check.remote(), CHECK_TIMEOUT_S, f"{self.name}: check")
            except RayTaskError as broken:
                raise GangDiedError(f"{self.name}: device: {broken.cause}") from broken
            raise ClipError(f"{type(error.cause).__name__}: {error.cause}") from error


async def _wait(call: Any, timeout_s: float, what: str) -> Any:
    """Await an answer; no answer in time, or no process to give one, is GangDiedError."""
    try:
        return await asyncio.wait_for(cast(Awaitable[Any], call), timeout_s)
    except TimeoutError as error:
        raise GangDiedError(f"{what}: no answer within {timeout_s:.0f} s") from error
    except RayTaskError:
        raise  # what the called method raised is the caller's to judge
    except RayError as error:
        raise GangDiedError(f"{what}: {type(error).__name__}") from error
