"""LTX-Video, tiny, with the VAE's real factors: 32 in space, 8 in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.families.base import Family, classic_frames, randomize, scale_latents
from tests.support.families.tokenizers import t5_tokenizer

TEXT_DIM = 32
LATENTS = 8


def text_encoder(seed: int) -> Any:
    """Return a T5 encoder for the T5 tokenizer's pieces."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=256, d_model=TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return randomize(T5EncoderModel(config), seed)


def vae(seed: int) -> Any:
    """Return a VAE of the real factors and few channels."""
    from diffusers import AutoencoderKLLTXVideo

    model = AutoencoderKLLTXVideo(
        latent_channels=LATENTS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    return scale_latents(randomize(model, seed), seed)


def build(folder: Path) -> None:
    """Write an LTX-Video checkpoint."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        num_layers=2,
        caption_channels=TEXT_DIM,
    )
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(2),
        text_encoder=text_encoder(1),
        tokenizer=t5_tokenizer(),
        transformer=randomize(transformer, 3),
    )
    pipe.save_pretrained(folder)


LTX = Family(
    name="ltx",
    build=build,
    width=64,
    height=64,
    num_frames=25,
    num_inference_steps=4,
    guidance_scale=3.0,
    size_multiple=32,
    frame_multiple=8,
    fps=25.0,
    classic=classic_frames,
    tolerance=1e-5,
)
