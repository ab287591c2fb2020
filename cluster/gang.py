"""`Gang`: ranks that hold one model together and live and die as one."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from typing import Any, Self, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group_table
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.answers import ClipKey, Spent, UnusableModelError
from cluster.rank import Progress, RankWorker
from pipeline.checkpoints import Checkpoints
from pipeline.errors import NotFiniteError, UnreachableError, UsageError
from pipeline.recipe import GangShape, ModelSpec, Recipe
from pipeline.request import RenderRequest

_T = TypeVar("_T")
CHECK_TIMEOUT_S = 30.0


class GangDiedError(Exception):
    """A rank died or hung: the gang is gone, its clips are not to blame."""


class NoPlaceError(GangDiedError):
    """The cluster has no place for it, or not yet."""


class ClipError(Exception):
    """The model refused this clip: the gang is well, the clip has failed."""


class DivergedError(ClipError):
    """Its latents aren't finite any more: what was saved of it may have led there."""


class Gang:
    """Ranks in a placement group of their own; made by `Gang.create`, ended by `kill`.

    Every rank gets every call; what the first one answers is the gang's answer.
    """

    def __init__(
        self,
        name: str,
        title: str,
        shape: GangShape,
        group: PlacementGroup,
    ) -> None:
        """Hold what `create` made; ranks come later."""
        self.name = name
        self.title = title
        """What Ray's dashboard knows the gang by; no other has it."""
        self.shape = shape
        self.held_since = time.monotonic()
        """When its resources were reserved."""
        self.pace: tuple[RenderRequest, float] | None = None
        """The last clip, and the seconds that a step of it took."""
        self._group = group
        self._ranks: list[Any] = []

    @classmethod
    async def create(cls, name: str, owner: str, shape: GangShape, recipe: Recipe) -> Self:
        """Reserve resources, start the ranks and load their weights.

        `owner` is what `remove_gangs` knows this gang by.

        Raises:
            NoPlaceError: no resources within `pool.start_timeout_s`.
            GangDiedError: no weights within that time.
            UnusableModelError: the checkpoint is at fault.
        """
        ranks = shape.layout.ranks
        bundle = {"CPU": shape.num_cpus, "GPU": shape.num_gpus}
        bundle = {kind: amount for kind, amount in bundle.items() if amount}
        title = f"{owner}/{name}/{secrets.token_hex(4)}"
        group = placement_group(
            [bundle] * ranks,
            strategy=shape.placement,
            name=title,
            bundle_label_selector=[dict(shape.label_selector)] * ranks,
        )
        gang = cls(name, title, shape, group)
        model, timeout_s = recipe.model, recipe.pool.start_timeout_s
        what = "place"
        try:
            asked = f"{name}: resources {ranks} x {bundle}, {shape.placement}"
            asked += f", {shape.label_selector}" if shape.label_selector else ""
            try:
                await _wait(group.ready(), timeout_s, asked)
            except GangDiedError as error:
                if isinstance(error.__cause__, TimeoutError):
                    waited = f"no node has room for them; waited {timeout_s:g} s"
                    raise NoPlaceError(f"{asked}: {waited}") from error
                raise
            gang.held_since = time.monotonic()
            places = enumerate(_order_by_node(group, ranks))
            gang._ranks = [gang._start_rank(model, number, bundle) for number, bundle in places]
            if ranks > 1:
                what = "meeting"
                opened = gang._ranks[0].host.remote(timeout_s)
                address = await _wait(opened, timeout_s, f"{name}: meeting place")
                await gang._call("join", address, timeout_s, timeout_s=timeout_s)
            what = "weights"
            await gang._call("load", timeout_s=timeout_s)
        except RayTaskError as error:
            gang.kill()
            if isinstance(error.cause, UsageError) and not isinstance(
                error.cause, UnreachableError
            ):
                raise UnusableModelError(str(error.cause)) from error
            raise GangDiedError(f"{name}: {what}: {error.cause}") from error
        except BaseException:
            gang.kill()
            raise
        return gang

    async def start(
        self,
        key: ClipKey,
        request: RenderRequest,
        conditioning: Any,
        snapshot: Any,
        timeout_s: float,
    ) -> Progress:
        """Start a clip's session; `conditioning` refers to packed `Conditioning`.

        `snapshot` refers to a packed snapshot to go on from, or is None.
        """
        args = (key, request, conditioning, snapshot)
        return await self._blame("start", *args, timeout_s=timeout_s)

    async def advance(self, key: ClipKey, max_steps: int, timeout_s: float) -> Progress:
        """Make up to `max_steps` steps of a clip.

        Raises:
            GangDiedError: a rank died, or gave no answer within `timeout_s`.
            ClipError: the model refused the clip.
            DivergedError: its latents aren't finite any more.
        """
        return await self._blame("advance", key, max_steps, timeout_s=timeout_s)

    async def save(
        self,
        key: ClipKey,
        checkpoints: Checkpoints,
        spent: Spent,
        timeout_s: float,
        *,
        wait: bool = False,
    ) -> str | None:
        """Save a clip's session to `checkpoints`; with `wait`, return once it is in the store.

        Returns what went wrong with saving, which doesn't harm the session; None where an earlier
        save is under way still, and this one was not begun.
        """
        call = self._ranks[0].save.remote(key, checkpoints, spent, wait)
        return await _wait(call, timeout_s, f"{self.name}: save")

    async def finish(
        self,
        key: ClipKey,
        checkpoints: Checkpoints,
        spent: Spent,
        timeout_s: float,
        drop_s: float,
    ) -> tuple[Any, str]:
        """Return a reference to the packed latents of a finished clip, once they are saved.

        With it, what went wrong with saving, if anything. `timeout_s` is for saving; then every
        rank has `drop_s` to forget the clip.
        """
        finish = self._ranks[0].finish.options(num_returns=2)
        latents, call = finish.remote(key, checkpoints, spent)
        wrong = await _wait(call, timeout_s, f"{self.name}: finish")
        try:
            await self.drop(key, drop_s)
        except (GangDiedError, ClipError) as error:  # the clip is made; the next ping tells
            wrong = wrong or str(error)
        return latents, wrong

    async def drop(self, key: ClipKey, timeout_s: float) -> None:
        """Forget a clip's session, finished or not."""
        await self._blame("drop", key, timeout_s=timeout_s)

    async def settle(self, timeout_s: float) -> None:
        """Return once no save is under way: what is removed then doesn't come back."""
        await _wait(self._ranks[0].settle.remote(), timeout_s, f"{self.name}: settle")

    async def ping(self) -> None:
        """Return once every rank has answered.

        Raises:
            GangDiedError: one doesn't.
        """
        await self._call("ping", timeout_s=CHECK_TIMEOUT_S)

    def nodes(self) -> set[str]:
        """Return the ids of the nodes that the ranks are on."""
        entry = placement_group_table(self._group)  # empty once the group is removed
        return set(map(str, entry.get("bundles_to_node_id", {}).values()))

    def kill(self) -> None:
        """End all ranks and give the resources back; may be called twice."""
        for rank in self._ranks:
            ray.kill(rank, no_restart=True)
        self._ranks = []
        remove_placement_group(self._group)

    def _start_rank(self, model: ModelSpec, number: int, bundle: int) -> Any:
        place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        actor = cast(Any, ray.remote(RankWorker)).options(
            name=f"{self.title}/{number}",
            num_cpus=self.shape.num_cpus,
            num_gpus=self.shape.num_gpus,
            scheduling_strategy=place,
        )
        return actor.remote(model, self.shape, number)

    async def _call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Call every rank; return the first one's answer once all have answered."""
        calls = [getattr(rank, method).remote(*args) for rank in self._ranks]
        what = f"{self.name}: {method}"
        return (await _wait(asyncio.gather(*calls), timeout_s, what))[0]

    async def _blame(self, method: str, key: ClipKey, *args: Any, timeout_s: float) -> Any:
        """Call every rank for a clip, and tell the clip's error from the gang's.

        A rank that alone refuses leaves the others waiting for it: then the gang is lost.
        """
        try:
            return await self._call(method, key, *args, timeout_s=timeout_s)
        except RayTaskError as error:
            refusal = f"{type(error.cause).__name__}: {error.cause}"
            try:
                await self._call("drop", key, timeout_s=CHECK_TIMEOUT_S)
                await self._call("check", timeout_s=CHECK_TIMEOUT_S)
            except RayTaskError as broken:
                raise GangDiedError(f"{self.name}: device: {broken.cause}") from broken
            except GangDiedError as lost:
                raise GangDiedError(f"{self.name}: {method}: {refusal}; then {lost}") from error
            diverged = isinstance(error.cause, NotFiniteError)
            raise (DivergedError if diverged else ClipError)(refusal) from error


def _order_by_node(group: PlacementGroup, ranks: int) -> list[int]:
    """Return a ready group's bundles, those of a node together: ranks in a row are neighbours.

    Ray 2.60 promises nothing of the order in which bundles are spread over nodes.
    """
    nodes = cast(dict[int, str], placement_group_table(group)["bundles_to_node_id"])
    return sorted(range(ranks), key=lambda bundle: (nodes[bundle], bundle))


def remove_gangs(owner: str) -> None:
    """End every gang that was created for `owner` and still stands: its maker has died."""
    for entry in placement_group_table().values():
        name = str(entry["name"])
        if name.startswith(f"{owner}/") and entry["state"] != "REMOVED":
            remove_placement_group(get_placement_group(name))


async def _wait(call: Any, timeout_s: float, what: str) -> Any:
    """Await an answer; no answer in time, or no process to give one, is GangDiedError."""
    try:
        async with asyncio.timeout(timeout_s):  # `wait_for` of 3.11 may lose who waits its end
            return await cast(Awaitable[Any], call)
    except RayTaskError:  # before a TimeoutError, which that of a called method is, too
        raise  # what the called method raised is the caller's to judge
    except TimeoutError as error:
        raise GangDiedError(f"{what}: no answer within {timeout_s:.0f} s") from error
    except RayError as error:
        raise GangDiedError(f"{what}: {type(error).__name__}: {_describe(error)}") from error


def _describe(error: RayError) -> str:
    """Return what Ray says of an actor's end, in a line: how it ended, its process and host."""
    *lines, how = str(error).splitlines() or [""]
    known = dict(line.strip().split(": ", 1) for line in lines if ": " in line.strip())
    how = how.partition(" Some common causes")[0]  # advice
    where = ", ".join(f"{key} {known[key]}" for key in ("pid", "ip") if key in known)
    return f"{how} ({where})" if where else how
