"""Helios, tiny: minutes of video, chunk after chunk, each from the history before it.

The clip is two chunks of 9 frames. Diffusers renders whole chunks and cuts the end to 4k + 1
frames: 17 here, and other counts of this family may give more frames than asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.families.base import Family, randomize
from tests.support.families.tokenizers import t5_tokenizer
from tests.support.families.wan import TEXT_DIM, text_encoder, vae


def build(folder: Path, **changes: Any) -> None:
    """Write a Helios checkpoint of one stage, as Helios-Base is; `changes` of its transformer."""
    from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

    transformer = HeliosTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_dim=(4, 4, 4),
        **changes,
    )
    pipe = HeliosPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=text_encoder(1),
        vae=vae(2),
        scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True),
        transformer=randomize(transformer, 3),
    )
    pipe.save_pretrained(folder)


def short_chunks() -> dict[str, Any]:
    """Return a chunk length of 3 latent frames, 9 frames, in place of 33."""
    return {"num_latent_frames_per_chunk": 3}


def classic(folder: Path, call: dict[str, Any]) -> Any:
    """Render with `HeliosPipeline`, with timesteps cut to whole numbers as the blocks cut them."""
    import torch
    from diffusers import HeliosPipeline

    def cut_timestep(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "timestep": kwargs["timestep"].to(torch.int64)}

    pipe = HeliosPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.register_forward_pre_hook(cut_timestep, with_kwargs=True)
    return pipe(**call, output_type="np").frames[0]


HELIOS = Family(
    name="helios",
    build=build,
    width=64,
    height=64,
    num_frames=17,
    num_inference_steps=2,
    guidance_scale=3.0,
    size_multiple=16,
    frame_multiple=4,
    fps=24.0,
    inputs=short_chunks,
    classic=classic,
)
