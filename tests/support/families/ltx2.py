"""LTX-2, tiny: video and audio denoised together.

The video VAE keeps the real factors (32 in space, 8 in time), the audio VAE its factor 4 and
the vocoder its 24 kHz.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.families.base import Family, classic_frames, randomize, scale_latents
from tests.support.families.tokenizers import gemma_tokenizer

TEXT_DIM = 32
LATENTS = 8
MEL_BINS = 16
AUDIO_LATENTS = 16
"""Channels of one audio token: 4 latent channels times 16 / 4 mel bins."""


def text_encoder(seed: int) -> Any:
    """Return a Gemma 3 whose hidden states, all of them, are the prompt's embedding."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 264,
        "hidden_size": TEXT_DIM,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 64,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return randomize(Gemma3ForConditionalGeneration(config), seed)


def connectors(seed: int) -> Any:
    """Return what turns the hidden states of all layers into embeddings for video and audio."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    shape: dict[str, Any] = {}
    for stream in ("video", "audio"):
        shape[f"{stream}_connector_num_attention_heads"] = 4
        shape[f"{stream}_connector_attention_head_dim"] = TEXT_DIM // 4
        shape[f"{stream}_connector_num_layers"] = 1
        shape[f"{stream}_connector_num_learnable_registers"] = 32
    model = LTX2TextConnectors(
        caption_channels=TEXT_DIM, text_proj_in_factor=3, rope_type="split", **shape
    )
    return randomize(model, seed)


def transformer(seed: int) -> Any:
    """Return the transformer: two streams of tokens with attention between them."""
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        audio_in_channels=AUDIO_LATENTS,
        audio_out_channels=AUDIO_LATENTS,
        audio_num_attention_heads=4,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=32,
        num_layers=2,
        caption_channels=TEXT_DIM,
        rope_type="split",
    )
    return randomize(model, seed)


def video_vae(seed: int) -> Any:
    """Return a video VAE of the real factors and few channels."""
    from diffusers import AutoencoderKLLTX2Video

    model = AutoencoderKLLTX2Video(
        latent_channels=LATENTS,
        block_out_channels=(4, 8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    return scale_latents(randomize(model, seed), seed)


def audio_vae(seed: int) -> Any:
    """Return an audio VAE over mel spectrograms at 16 kHz."""
    from diffusers import AutoencoderKLLTX2Audio

    model = AutoencoderKLLTX2Audio(
        base_channels=AUDIO_LATENTS,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        resolution=32,
        latent_channels=4,
        mel_bins=MEL_BINS,
    )
    return scale_latents(randomize(model, seed), seed)


def vocoder(seed: int) -> Any:
    """Return a vocoder from mel spectrograms to stereo at 24 kHz."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    model = LTX2Vocoder(
        in_channels=2 * MEL_BINS,
        hidden_channels=64,
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )
    return randomize(model, seed)


def build(folder: Path) -> None:
    """Write an LTX-2 checkpoint."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    pipe = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=video_vae(2),
        audio_vae=audio_vae(6),
        text_encoder=text_encoder(1),
        tokenizer=gemma_tokenizer(),
        connectors=connectors(7),
        transformer=transformer(3),
        vocoder=vocoder(8),
    )
    pipe.save_pretrained(folder)


LTX2 = Family(
    name="ltx2",
    build=build,
    width=64,
    height=64,
    num_frames=25,
    num_inference_steps=3,
    guidance_scale=3.0,
    size_multiple=32,
    frame_multiple=8,
    fps=24.0,
    audio_rate=24_000,
    model={"blocks": "LTX2AutoBlocks"},
    classic=classic_frames,
    tolerance=1e-5,
)
