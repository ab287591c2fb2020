"""`Encoder`: text and images → conditioning. What repeats is computed once.

A table of ads repeats itself: the negative prompt, a prompt in several sizes, an empty control
video. So each model call of this stage is remembered by the content of its arguments; a model's
output is a pure function of them, and the blocks around it stay as they are.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from transformers import PreTrainedTokenizerBase

from pipeline.graph import Graph
from pipeline.handoff import Conditioning
from pipeline.opening import CONDITIONS, make_conditions
from pipeline.probe import Frames
from pipeline.request import RenderRequest
from pipeline.state import hand_over, make_state
from pipeline.uncut import refuse_cuts

MEMO_BYTES = 1 << 30
GUIDED = 2.0
"""This stage's guidance scale, whatever the request's: above 1, so that negative embeddings are
always made. At 1 Wan's text encoder, asked for none, returns a name that it never set."""


class Encoder:
    """The encode stage of a graph with its weights on one device."""

    def __init__(self, graph: Graph, device: str = "cpu") -> None:
        """Load the stage's weights onto `device`."""
        self.stage = graph.load("encode", device)
        self._forwarded = graph.forwarded_names("encode")
        self._takes_frames = {each.name for each in self.stage.blocks.inputs} >= {*CONDITIONS}
        for name, component in self.stage.pipeline.components.items():
            if isinstance(component, BaseGuidance) and "guidance_scale" in component.config:
                setattr(self.stage.pipeline, name, component.new(guidance_scale=GUIDED))
            if isinstance(component, PreTrainedTokenizerBase):
                refuse_cuts(component)
            if isinstance(component, torch.nn.Module):
                for method in ("forward", "encode"):
                    if hasattr(component, method):
                        setattr(component, method, CallMemo(getattr(component, method)))

    def encode(
        self,
        request: RenderRequest,
        inputs: Mapping[str, Any] | None = None,
        opening: Iterable[Frames] = (),
    ) -> Conditioning:
        """Return what the denoise stage needs for `request`.

        `inputs` are further block inputs by name, such as a conditioning `image`, or a setting of
        the denoise blocks, which is handed on. `opening` are the frames that the clip begins with.

        Raises:
            ValueError: these blocks take no frames, or others than `opening` has.
            UnfitRequestError: a text has more tokens than the model reads.
        """
        given = make_conditions(request, opening)
        if given and not self._takes_frames:
            raise ValueError(
                f"limits.max_seen_frames: the model's blocks have no {' and '.join(CONDITIONS)}"
            )
        state = make_state(request, self.stage.blocks, inputs={**given, **(inputs or {})})
        self.stage.run(state)
        return Conditioning(*hand_over(state, *self._forwarded))


class CallMemo:
    """A pure function of tensors that remembers its latest results, by its arguments' content.

    Calls with arguments of other kinds than tensors and plain values go straight through.
    """

    def __init__(self, function: Callable[..., Any], max_bytes: int = MEMO_BYTES) -> None:
        """Remember up to `max_bytes` of results; the least recently used go first."""
        functools.update_wrapper(self, function)  # blocks look at a model's signature
        self.hits = 0
        self.misses = 0
        self._function = function
        self._max_bytes = max_bytes
        self._bytes = 0
        self._results: OrderedDict[bytes, Any] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the function's result, computed or remembered. It must not be written to."""
        key = _digest([args, kwargs])
        if key is None:
            return self._function(*args, **kwargs)
        if key in self._results:
            self.hits += 1
            self._results.move_to_end(key)
            return self._results[key]
        self.misses += 1
        result = self._function(*args, **kwargs)
        self._results[key] = result
        self._bytes += _size(result)
        while self._bytes > self._max_bytes and len(self._results) > 1:
            self._bytes -= _size(self._results.popitem(last=False)[1])
        return result


def _digest(arguments: Any) -> bytes | None:
    hasher = hashlib.blake2b(digest_size=16)
    return hasher.digest() if _feed(hasher.update, arguments) else None


def _feed(update: Callable[[bytes | memoryview], None], value: Any) -> bool:
    """Give a value's content to a hash; return whether all of it was of a known kind."""
    if isinstance(value, torch.Tensor):
        update(f"{value.dtype}{tuple(value.shape)}{value.device};".encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        update(flat.numpy().data)
        return True
    if isinstance(value, dict):
        update(f"dict{len(value)};".encode())
        return all(_feed(update, name) and _feed(update, value[name]) for name in sorted(value))
    if isinstance(value, list | tuple):
        update(f"{type(value).__name__}{len(value)};".encode())
        return all(_feed(update, each) for each in value)
    update(f"{type(value).__name__}:{value!r};".encode())
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)


def _size(value: Any) -> int:
    """Return the bytes of the tensors in a model's output."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = vars(value).values()
    return sum(_size(each) for each in parts)
