"""Packed state comes back to the bit, or not at all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.handoff import Conditioning, UnpackableError, is_packable, pack, unpack

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of any bits: NaNs with a payload, infinities, denormals; empty ones; views."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    data = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    if dtype is torch.bool:
        data = data % 2
    tensor = data.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(DTYPES)
)
trees = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def bits(value: Any) -> Any:
    """Return a tree in which equal means equal to the bit."""
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().reshape(-1)
        return "tensor", value.dtype, tuple(value.shape), bytes(flat.view(torch.uint8).tolist())
    if isinstance(value, list | tuple):
        return type(value), [bits(each) for each in value]
    if isinstance(value, dict):
        return {name: bits(each) for name, each in value.items()}
    if isinstance(value, float):
        return "float", value.hex()
    return type(value), value


@given(trees)
@settings(deadline=None, max_examples=60)
def test_a_tree_comes_back_to_the_bit(tree: Any) -> None:
    assert is_packable(tree)
    assert bits(unpack(pack(tree))) == bits(tree)


@given(trees, st.data())
@settings(deadline=None, max_examples=30)
def test_damaged_bytes_are_refused(tree: Any, data: st.DataObject) -> None:
    packed = pack(tree)
    cut = data.draw(st.integers(0, len(packed) - 1), "cut")
    place = data.draw(st.integers(0, len(packed) - 1), "place")
    flip = data.draw(st.integers(1, 255), "flip")
    flipped = packed[:place] + bytes([packed[place] ^ flip]) + packed[place + 1 :]
    for damaged in (packed[:cut], packed[cut + 1 :], flipped, packed + b"\0"):
        with pytest.raises(ValueError, match="not packed state"):
            unpack(damaged)


@given(st.binary(max_size=64))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not packed state"):
        unpack(data)


@pytest.mark.parametrize(
    "value",
    [object(), {1: "a"}, {"a": {2}}, [torch.nn.Linear(1, 1)], torch.Size([1]), b"bytes", 1j],
    ids=lambda value: type(value).__name__,
)
def test_other_things_are_refused(value: Any) -> None:
    assert not is_packable(value)
    with pytest.raises(UnpackableError, match="cannot pack a"):
        pack(value)


def test_packing_copies() -> None:
    """Tensors that share memory, or change later, are kept as they were."""
    tensor = torch.arange(4.0)
    packed = pack({"whole": tensor, "part": tensor[1:], "again": tensor})
    tensor.zero_()
    made = unpack(packed)
    assert made["whole"].tolist() == made["again"].tolist() == [0, 1, 2, 3]
    assert made["part"].tolist() == [1, 2, 3]


def test_a_handoff_comes_back() -> None:
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    handoff = Conditioning({"embeds": torch.ones(2, dtype=torch.bfloat16)}, {"embeds": "x"}, state)
    made = Conditioning.from_bytes(handoff.to_bytes())
    assert isinstance(made, Conditioning)
    assert bits(dict(made.values)) == bits(dict(handoff.values))
    assert made.kinds == {"embeds": "x"}
    other = torch.Generator()
    assert made.generator_state is not None
    other.set_state(made.generator_state)
    assert torch.equal(torch.randn(3, generator=other), torch.randn(3, generator=generator))


def test_a_handoff_moves_to_the_next_stages_device() -> None:
    """All of it: an encoder in main memory may serve a denoiser on a GPU. `meta` stands for one."""
    state = torch.Generator().get_state()
    values = {"a": torch.ones(2), "b": [torch.ones(1), {"c": (torch.ones(1), 3)}], "d": None}
    moved = Conditioning(values, {"a": "x"}, state).to("meta")
    assert isinstance(moved, Conditioning)
    assert moved.values["a"].is_meta
    assert moved.values["b"][0].is_meta
    assert moved.values["b"][1]["c"][0].is_meta
    assert moved.values["b"][1]["c"][1] == 3
    assert moved.kinds == {"a": "x"}
    assert moved.generator_state is state
    assert not values["a"].is_meta


def test_a_handoff_without_draws_comes_back() -> None:
    assert Conditioning.from_bytes(Conditioning({}).to_bytes()) == Conditioning({})
