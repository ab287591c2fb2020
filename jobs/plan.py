"""Plan a call: what its tables ask for, what of it is done, what is left. No Ray, no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

from pipeline.blocks import INDEXES, check_blocks, check_index
from pipeline.documents import OutputIdentity, describe_output
from pipeline.identity import clip_id, digest_renderer
from pipeline.ledger import Ledger
from pipeline.model import fingerprint_model, pin_model, pin_place, resolve_checkpoint
from pipeline.parallel.degrees import TRANSFORMER_CONFIGS, check_degrees
from pipeline.plan import Plan
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.table import plan_tables


@dataclass(frozen=True)
class PlannedCall:
    """A call's tables, planned for one model and finish."""

    recipe: Recipe
    model_fingerprint: str
    plan: Plan

    @property
    def identity(self) -> OutputIdentity:
        """What an output of this call is."""
        return describe_output(self.recipe, self.model_fingerprint)

    def remaining(self, done: Set[str], limit: int | None = None) -> dict[str, RenderRequest]:
        """Return the clips still to render, by clip id, most work first.

        Clips that different gangs take are mixed evenly: a run has so many at once, and all of them
        might be for one of those gangs.

        `limit` counts clips in table order, whether done or not: the first ones are a sample that
        doesn't change, so the same call again renders nothing more.
        """
        requests = self.plan.requests(done)
        if limit is not None:
            order = (key for table in self.plan.tables for (key,) in table.read_valid())
            first = set(list(dict.fromkeys(order))[:limit])
            requests = {key: each for key, each in requests.items() if key in first}
        return self._mix(requests)

    def _mix(self, requests: dict[str, RenderRequest]) -> dict[str, RenderRequest]:
        if len({gang.max_tokens for gang in self.recipe.gangs}) == 1:
            return requests
        lines = defaultdict[int | None, list[str]](list)
        for key, each in requests.items():
            gang = self.recipe.find_gang(each.width, each.height, each.num_frames)
            lines[gang.max_tokens if gang else None].append(key)
        places = {
            key: (place + 0.5) / len(line)
            for line in lines.values()
            for place, key in enumerate(line)
        }
        return {key: requests[key] for key in sorted(requests, key=places.__getitem__)}


def plan_rows(tables: Sequence[str], recipe: Recipe) -> Plan:
    """Read and plan all tables without the model: a clip's id is of its request alone.

    Raises:
        UsageError: the call is wrong; see `plan_tables`.
    """
    return plan_tables(tables, recipe, lambda request: clip_id(request, ""))


def plan_call(tables: Sequence[str], recipe: Recipe) -> PlannedCall:
    """Read and plan all tables; then find the model, which may have to be fetched.

    Raises:
        UsageError: the call is wrong; see `plan_tables`, `find_model`.
    """
    plan = plan_rows(tables, recipe)
    recipe, fingerprint = find_model(recipe)
    renderer = digest_renderer(fingerprint, recipe.finish)
    named = plan.with_clip_ids(lambda request: clip_id(request, renderer))
    return PlannedCall(recipe, fingerprint, named)


def find_model(recipe: Recipe) -> tuple[Recipe, str]:
    """Return a recipe with its model found and pinned, and the model's fingerprint.

    From a hub, configurations are fetched first.

    Raises:
        UsageError: it can't be found, is none of diffusers', which may have no such blocks, or
            can't be cut as the gangs ask; see `check_degrees`, `fingerprint_model`.
    """
    model = recipe.model
    check_blocks(model)
    sketch = resolve_checkpoint(model, (*INDEXES, *TRANSFORMER_CONFIGS))
    check_index(model, sketch)
    check_degrees(sketch, recipe.gangs)
    folder = resolve_checkpoint(pin_place(model, sketch))
    pinned = pin_model(model, folder)  # first: what changes while it is hashed isn't it any more
    return recipe.model_copy(update={"model": pinned}), fingerprint_model(model, folder)


def split_clips(plan: Plan, recipe: Recipe) -> dict[str, int]:
    """Return how many distinct clips go to each shape of gang, by the gang's name.

    Shapes that take the same clips share them, and are named together.
    """
    alike = {
        room: ", ".join(gang.name for gang in recipe.gangs if gang.max_tokens == room)
        for room in (gang.max_tokens for gang in recipe.gangs)
    }
    counts = dict.fromkeys(alike.values(), 0)
    for (width, height, num_frames, _), clips in plan.shapes.items():
        gang = recipe.find_gang(width, height, num_frames)
        if gang:
            counts[alike[gang.max_tokens]] += clips
    return counts


def find_done(call: PlannedCall, ledger: Ledger) -> set[str]:
    """Return the clips of a call that an output holds already; none where none has come yet.

    Raises:
        OutputMismatchError: the output is another model's or finish's.
    """
    if not ledger.check_output(call.identity):
        return set()
    return ledger.committed_ids() & call.plan.clip_ids
