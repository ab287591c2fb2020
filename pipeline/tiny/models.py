"""The four models and the scheduler: their sizes, and nothing learned.

The classes are diffusers' and transformers' own. What is small is their width: about
7 million numbers in all, so that the checkpoint stays under 16 MB in half precision.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACETransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

VOCABULARY = 1024
"""Tokens of the byte-level BPE, special ones included."""

TEXT_WIDTH = 128
LATENT_CHANNELS = 16
TEMPORAL = 4
"""Frames in one latent frame, after the first."""
SPATIAL = 8
"""Pixels in one latent pixel, along each side."""

VAE: dict[str, Any] = {
    # Half as wide an encoder as decoder: a third of the training time, and it has less to do.
    "base_dim": 8,
    "decoder_base_dim": 16,
    "z_dim": LATENT_CHANNELS,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    # The residual form of Wan 2.2: without it a few minutes of training reach 14 dB, not 27.
    "is_residual": True,
    "scale_factor_temporal": TEMPORAL,
    "scale_factor_spatial": SPATIAL,
}

TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": TEXT_WIDTH,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}

TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 8,
    "attention_head_dim": 24,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 576,
    "num_layers": 6,
    "vace_layers": [0, 3],
    # Kept pixels, pixels to redraw, and the mask: one number for each of 8 x 8 pixels.
    "vace_in_channels": 2 * LATENT_CHANNELS + SPATIAL * SPATIAL,
}

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
}


def build_vae() -> AutoencoderKLWan:
    """An untrained VAE: 8 x 8 pixels and 4 frames to one latent of 16 channels."""
    blank = {"latents_mean": [0.0] * LATENT_CHANNELS, "latents_std": [1.0] * LATENT_CHANNELS}
    return AutoencoderKLWan(**VAE, **blank)


def build_text_encoder() -> UMT5EncoderModel:
    """An untrained UMT5 encoder of two layers."""
    return UMT5EncoderModel(UMT5Config(**TEXT_ENCODER, decoder_start_token_id=0))


def build_transformer() -> WanVACETransformer3DModel:
    """An untrained Wan-VACE transformer; heads and ffn divide by 1, 2, 4 and 8."""
    return WanVACETransformer3DModel(**TRANSFORMER)


def build_scheduler() -> UniPCMultistepScheduler:
    """UniPC on flow sigmas, as Wan's own checkpoints have it."""
    return UniPCMultistepScheduler(**SCHEDULER)
