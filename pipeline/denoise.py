"""`DenoiseSession`: one clip's denoising, advanced step by step by whoever owns the device.

The checkpoint's own denoise blocks run unchanged. They are suspended, in a greenlet, where their
loop calls `loop_step`: so a family's own preamble or chunks of steps need no word here. A step is
the unit that the family's loop offers (for Helios, a chunk of frames).
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline import (
    BlockState,
    LoopSequentialPipelineBlocks,
    PipelineState,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from greenlet import getcurrent, greenlet

from pipeline.errors import NotFiniteError
from pipeline.graph import Graph, find_loops
from pipeline.handoff import Conditioning, Latents, check_finite, is_packable, pack, unpack
from pipeline.parallel.place import Place
from pipeline.request import RenderRequest
from pipeline.state import (
    drawing_from,
    hand_over,
    make_state,
    read_momentum,
    restore_momentum,
    session_copy,
)


class Denoiser:
    """The denoise stage of a graph with its weights on one device."""

    def __init__(self, graph: Graph, device: str = "cpu", place: Place | None = None) -> None:
        """Load the stage's weights onto `device`; at a place in a gang, this rank's share of them.

        The ranks of a gang run the same sessions with the same calls, step by step.
        """
        self.device = device
        self.model = graph.model
        self.guidance = place.guidance if place else None
        self.stage = graph.load("denoise", device, place)
        for model in self.stage.transformers():
            if place and place.context:
                place.context.split_transformer(model)
            if self.guidance:  # last: a pass that isn't made exchanges no tokens either
                self.guidance.split_transformer(model)
        self.forwarded = graph.forwarded_names("denoise")
        for loop in find_loops(self.stage.blocks):
            _suspend_at_steps(loop)

    def start(
        self, request: RenderRequest, conditioning: Conditioning, snapshot: bytes | None = None
    ) -> DenoiseSession:
        """Return a session before its first step, or where `snapshot` left off.

        Raises:
            ValueError: the snapshot is damaged or another request's.
        """
        return DenoiseSession(self, request, conditioning, snapshot)

    def wait(self) -> None:
        """Return once the device has done what it was given: a GPU works on after a call."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class _Snapshot:
    """What resuming needs: everything that the loop changed since it began."""

    request: Mapping[str, Any]
    step: int
    shapes: Mapping[str, Any]
    """Of what the loop began with: another model's differ."""
    fields: Mapping[str, Any]
    schedulers: Mapping[str, Mapping[str, Any]]
    generator_state: torch.Tensor
    guiders: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict[str, Any])
    """What guiders have kept; an earlier version didn't say."""


class DenoiseSession:
    """One clip in the making. Must be used from the thread that started it, and closed if left.

    A suspended loop keeps the session and its tensors alive until it ends: by its last step, by
    `close` (at the end of a `with` block too) or by an exception of its own. From then on they last
    as long as whoever holds the session: a device's memory is not to wait for Python's collector of
    cycles.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        request: RenderRequest,
        conditioning: Conditioning,
        snapshot: bytes | None,
    ) -> None:
        """Run the blocks up to the loop's first step; see `Denoiser.start`."""
        self.request = request
        self.step = 0
        self.num_steps = 0
        self._denoiser = denoiser
        self._pipeline = session_copy(
            denoiser.stage.pipeline, request.guidance_scale, denoiser.model
        )
        if denoiser.guidance:
            denoiser.guidance.split_guiders(self._guiders().values())
        self._state = make_state(request, denoiser.stage.blocks, conditioning.to(denoiser.device))
        self._restore: _Snapshot | None = None
        if snapshot is not None:
            self._restore = _read_snapshot(snapshot, request, denoiser.device)
        self._target = 0
        self._block_state: BlockState | None = None
        self._entry: dict[str, Any] = {}
        self._shapes: dict[str, Any] = {}
        self._kept: list[Any] = []
        self._finished = False
        self._greenlet = _Suspendable(self)
        self._switch()

    @property
    def done(self) -> bool:
        """Whether the last step has been made."""
        return self._finished

    def __enter__(self) -> DenoiseSession:
        """Return the session; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the session."""
        self.close()

    def advance(self, max_steps: int) -> int:
        """Make up to `max_steps` further steps; return how many were made.

        Raises:
            NotFiniteError: the latents aren't finite any more; the session has ended.
            RuntimeError: the session was closed or has failed. What a step raises ends it.
        """
        before = self.step
        if not self.done:
            if self._greenlet.dead:
                raise RuntimeError(f"the session has ended at step {before} of {self.num_steps}")
            self._target = before + max_steps
            self._switch()
            self._check_latents()
        return self.step - before

    def snapshot(self) -> bytes:
        """Return the session at its present step, packed; `Denoiser.start` resumes it bit-equal.

        It holds what the loop changed (latents, a scheduler's whole state, a guider's momentum, the
        generator's state), and no weights or embeddings.

        Raises:
            RuntimeError: the session has ended; if it is done, its latents are what to keep.
        """
        if self._greenlet.dead or self._block_state is None:
            raise RuntimeError("an ended session has no snapshot")
        fields = {
            name: value
            for name, value in self._block_state.as_dict().items()
            if name not in self._entry or self._entry[name] != _stamp(value)
        }
        return pack(
            {
                "request": self.request.model_dump(),
                "step": self.step,
                "shapes": self._shapes,
                "fields": _packable(fields),
                "schedulers": {
                    name: _packable(vars(scheduler))
                    for name, scheduler in self._schedulers().items()
                },
                "guiders": read_momentum(self._guiders()),
                "generator_state": self._generator().get_state(),
            }
        )

    def latents(self) -> Latents:
        """Return the finished latents, on the CPU once packed.

        Raises:
            RuntimeError: steps remain, or the session was closed.
        """
        if not self.done:
            raise RuntimeError(f"step {self.step} of {self.num_steps}: not finished")
        if not self._state.values:
            raise RuntimeError("a closed session has no latents; take them before")
        return Latents(*hand_over(self._state, *self._denoiser.forwarded))

    def close(self) -> None:
        """End the session, finished or not, and free all that it holds, latents too."""
        if not self._greenlet.dead:
            with torch.no_grad():  # as in `_switch`
                self._greenlet.throw()
        self._state = PipelineState()
        self._pipeline = self._denoiser.stage.pipeline  # for its own schedulers keep a history
        self._block_state = None
        self._entry = {}
        self._kept = []

    def take_step(self, step: Any, components: Any, block_state: BlockState, kwargs: Any) -> Any:
        """Make the loop's next step once it is due; called by the loop, in the greenlet."""
        if self._block_state is not block_state:
            self._enter_loop(block_state)
        restore = self._restore
        if restore and self.step < restore.step:
            self.step += 1
            return components, block_state
        if restore:
            self._apply(restore, block_state)
            self._restore = None
        while self.step >= self._target:
            cast(greenlet, self._greenlet.parent).switch()
        with drawing_from(self._generator(), self._schedulers().values()):
            result = step(components, block_state, **kwargs)
        self.step += 1
        return result

    def run_blocks(self) -> None:
        """Run the denoise blocks from start to end; called once, in the greenlet."""
        self._denoiser.stage.run(self._state, self._pipeline)
        self._finished = True

    def _check_latents(self) -> None:
        """Close the session once its latents aren't finite: what comes after is of no use."""
        names = self._denoiser.forwarded[0]
        if self.done:
            values = self.latents().values
        else:
            held = self._block_state.as_dict() if self._block_state else {}
            values = {name: value for name, value in held.items() if name in names}
        try:
            check_finite(values)
        except NotFiniteError:
            self.close()
            raise

    def _switch(self) -> None:
        # The blocks' own no_grad begins inside the greenlet: begin it here too, so that switching
        # out in mid-loop can't leave the caller with gradients off.
        with torch.no_grad():
            self._greenlet.switch()

    def _enter_loop(self, block_state: BlockState) -> None:
        self._block_state = block_state
        values = block_state.as_dict()
        self._kept = list(values.values())  # a stamp is an id: its object must stay alive
        self._entry = {name: _stamp(value) for name, value in values.items()}
        self._shapes = {
            name: list(value.shape)
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        restore = self._restore
        if restore and not (
            restore.shapes == self._shapes
            and restore.schedulers.keys() == self._schedulers().keys()
            and restore.step < self.num_steps
        ):
            raise ValueError("the snapshot is another model's")

    def _apply(self, restore: _Snapshot, block_state: BlockState) -> None:
        for name, value in restore.fields.items():
            block_state[name] = value
        for name, attributes in restore.schedulers.items():
            vars(self._schedulers()[name]).update(attributes)
        restore_momentum(self._guiders(), restore.guiders)
        self._generator().set_state(restore.generator_state)

    def _schedulers(self) -> dict[str, SchedulerMixin]:
        """Return the pipeline's schedulers and those that blocks have made, such as for audio."""
        made = self._block_state.as_dict() if self._block_state else {}
        named = {**self._pipeline.components, **made}
        return {name: each for name, each in named.items() if isinstance(each, SchedulerMixin)}

    def _guiders(self) -> dict[str, BaseGuidance]:
        named = self._pipeline.components.items()
        return {name: each for name, each in named if isinstance(each, BaseGuidance)}

    def _generator(self) -> torch.Generator:
        return cast(torch.Generator, self._state.get("generator"))


class _Suspendable(greenlet):
    """A session's blocks, running."""

    def __init__(self, session: DenoiseSession) -> None:
        super().__init__(session.run_blocks)
        self.session: DenoiseSession = weakref.proxy(session)  # which holds this greenlet


def _read_snapshot(data: bytes, request: RenderRequest, device: str) -> _Snapshot:
    try:
        snapshot = _Snapshot(**unpack(data, device))
    except TypeError as error:
        raise ValueError("these bytes are packed, but no snapshot") from error
    if snapshot.request != request.model_dump():
        raise ValueError("the snapshot is another request's")
    return snapshot


def _packable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if is_packable(value)}


def _stamp(value: Any) -> Any:
    """Return what changes when `value` is replaced or written to."""
    if isinstance(value, torch.Tensor):
        return id(value), value._version  # pyright: ignore[reportPrivateUsage]
    if isinstance(value, list | tuple):
        return [_stamp(each) for each in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _stamp(each) for key, each in cast(dict[str, Any], value).items()}
    return value if isinstance(value, bool | int | float | str) else id(value)


def _suspend_at_steps(loop: LoopSequentialPipelineBlocks) -> None:
    """Let each of `loop`'s steps wait until the session that runs it says go."""
    step = loop.loop_step
    length = loop.loop_inputs[0].name  # `timesteps`, or how many chunks

    def loop_step(components: Any, state: Any, **kwargs: Any) -> Any:
        session = cast(_Suspendable, getcurrent()).session
        total = state[length]
        session.num_steps = total if isinstance(total, int) else len(total)
        return session.take_step(step, components, state, kwargs)

    loop.loop_step = loop_step
