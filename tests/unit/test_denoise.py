"""A session's steps: any chunks, stops, failures and ends."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import NotFiniteError
from pipeline.handoff import Conditioning, Latents, pack, unpack
from pipeline.request import RenderRequest
from tests.support.families import FAMILIES
from tests.support.staged import Staged, assert_same, finish, request_of

STEPS = 5


@pytest.fixture(scope="module")
def staged(checkpoint_of: Callable[[str], Path]) -> Staged:
    return Staged(FAMILIES["wan_vace"], checkpoint_of("wan_vace"))


@pytest.fixture(scope="module")
def request_(staged: Staged) -> RenderRequest:
    return request_of(staged.family, num_inference_steps=STEPS)


@pytest.fixture(scope="module")
def conditioning(staged: Staged, request_: RenderRequest) -> Conditioning:
    return staged.encode(request_)


@pytest.fixture(scope="module")
def expected(staged: Staged, request_: RenderRequest, conditioning: Conditioning) -> Latents:
    return finish(staged.denoiser.start(request_, conditioning))


@pytest.mark.parametrize("chunks", [[1] * STEPS, [2, 2, 2], [4, 100], [0, 3, 0, 2], [STEPS]])
def test_any_chunks_make_the_same_bits(
    staged: Staged,
    request_: RenderRequest,
    conditioning: Conditioning,
    expected: Latents,
    chunks: list[int],
) -> None:
    session = staged.denoiser.start(request_, conditioning)
    assert (session.step, session.num_steps, session.done) == (0, STEPS, False)
    made = 0
    for chunk in chunks:
        count = session.advance(chunk)
        assert count == min(chunk, STEPS - made)
        made += count
        assert session.step == made
    assert session.done
    assert session.advance(1) == 0
    assert_same(dict(session.latents().values), dict(expected.values))


def test_a_snapshot_is_a_few_latents(
    staged: Staged, request_: RenderRequest, conditioning: Conditioning, expected: Latents
) -> None:
    """Measured: 7 tensors of the latents' size and 30 kB of tables. No embeddings."""
    with staged.denoiser.start(request_, conditioning) as session:
        session.advance(3)
        snapshot = session.snapshot()
    size = expected.values["latents"].nbytes
    assert len(snapshot) < 7 * size + 32_000
    held = {tensor.data_ptr(): tuple(tensor.shape) for tensor in tensors_in(unpack(snapshot))}
    given = {tuple(tensor.shape) for tensor in tensors_in(dict(conditioning.values))}
    assert not given & set(held.values())


def test_a_snapshot_needs_a_running_session(
    staged: Staged, request_: RenderRequest, conditioning: Conditioning, expected: Latents
) -> None:
    session = staged.denoiser.start(request_, conditioning)
    first = session.snapshot()  # before any step
    with pytest.raises(RuntimeError, match=f"step 0 of {STEPS}"):
        session.latents()
    finish(session)
    with pytest.raises(RuntimeError, match="ended"):
        session.snapshot()
    again = staged.denoiser.start(request_, conditioning, first)
    assert_same(dict(finish(again).values), dict(expected.values))


def test_a_snapshot_from_before_guiders_were_in_it_is_whole(
    staged: Staged, request_: RenderRequest, conditioning: Conditioning, expected: Latents
) -> None:
    with staged.denoiser.start(request_, conditioning) as session:
        session.advance(2)
        kept = unpack(session.snapshot())
    assert kept.pop("guiders") == {"guider": {}, "guider_2": {}}
    resumed = staged.denoiser.start(request_, conditioning, pack(kept))
    assert_same(dict(finish(resumed).values), dict(expected.values))


def test_another_shapes_snapshot_is_refused(
    staged: Staged, request_: RenderRequest, conditioning: Conditioning
) -> None:
    with staged.denoiser.start(request_, conditioning) as session:
        snapshot = session.snapshot()
    shorter = {
        name: value[:, :100] if name.endswith("prompt_embeds") else value
        for name, value in conditioning.values.items()
    }
    with pytest.raises(ValueError, match="another model"):
        staged.denoiser.start(request_, Conditioning(shorter, conditioning.kinds), snapshot)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_callers_grad_mode_is_untouched(
    staged: Staged, request_: RenderRequest, conditioning: Conditioning, enabled: bool
) -> None:
    with torch.set_grad_enabled(enabled):
        one = staged.denoiser.start(request_, conditioning)
        assert torch.is_grad_enabled() is enabled
        two = staged.denoiser.start(request_, conditioning)
        one.advance(2)
        assert torch.is_grad_enabled() is enabled
        finish(two)
        assert torch.is_grad_enabled() is enabled
        one.close()
        assert torch.is_grad_enabled() is enabled
    assert not two.latents().values["latents"].requires_grad


def test_close_frees(staged: Staged, request_: RenderRequest, conditioning: Conditioning) -> None:
    session = staged.denoiser.start(request_, conditioning)
    session.advance(1)
    latents = weakref.ref(session._block_state.latents)  # type: ignore[union-attr]
    gone = weakref.ref(session)
    session.close()
    session.close()  # once more does nothing
    assert latents() is None
    with pytest.raises(RuntimeError, match=f"ended at step 1 of {STEPS}"):
        session.advance(1)
    with pytest.raises(RuntimeError, match="not finished"):
        session.latents()
    del session
    assert gone() is None


def test_close_frees_a_finished_clips_latents_too(
    staged: Staged, request_: RenderRequest, conditioning: Conditioning
) -> None:
    with staged.denoiser.start(request_, conditioning) as session:
        finish(session)
        latents = weakref.ref(session.latents().values["latents"])
    assert latents() is None
    assert session.done
    with pytest.raises(RuntimeError, match="closed session"):
        session.latents()


def test_a_failing_step_surfaces_and_the_next_clip_renders(
    staged: Staged,
    request_: RenderRequest,
    conditioning: Conditioning,
    expected: Latents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transformer = staged.denoiser.stage.pipeline.components["transformer"]
    forward, calls = transformer.forward, 0

    @functools.wraps(forward)  # the blocks look at its signature
    def fail_third(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    other = staged.denoiser.start(request_, conditioning)
    other.advance(2)
    session = staged.denoiser.start(request_, conditioning)
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "forward", fail_third)
        with pytest.raises(RuntimeError, match="out of memory"):
            session.advance(STEPS)
    assert torch.is_grad_enabled()
    assert not session.done
    with pytest.raises(RuntimeError, match="not finished"):
        session.latents()
    with pytest.raises(RuntimeError, match="ended"):
        session.advance(1)
    session.close()
    assert_same(dict(finish(other).values), dict(expected.values))
    again = staged.denoiser.start(request_, conditioning)
    assert_same(dict(finish(again).values), dict(expected.values))


@pytest.mark.parametrize("spoilt", [2, STEPS])
def test_a_session_ends_once_its_latents_are_not_finite(
    staged: Staged,
    request_: RenderRequest,
    conditioning: Conditioning,
    expected: Latents,
    spoilt: int,
) -> None:
    bias = staged.denoiser.stage.pipeline.components["transformer"].proj_out.bias
    kept = bias.detach().clone()
    session = staged.denoiser.start(request_, conditioning)
    session.advance(spoilt - 1)
    try:
        with torch.no_grad():
            bias.fill_(float("nan"))
        with pytest.raises(NotFiniteError, match="latents are not finite"):
            session.advance(1)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    assert session.step == spoilt
    with pytest.raises(RuntimeError, match="ended"):
        session.snapshot()
    again = staged.denoiser.start(request_, conditioning)
    assert_same(dict(finish(again).values), dict(expected.values))


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for each in value for tensor in tensors_in(each)] if _is_row(value) else []


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple)
