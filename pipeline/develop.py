"""`Developer`: latents → frames → an MP4 and a poster, probed. Memory doesn't grow with length.

Where the VAE decodes frame by frame (Wan's does, with a cache of features), frames go to the
encoder as they come. Elsewhere the decode blocks run whole. A family that renders in chunks may
give more frames than asked; the rest is cut off.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, unpatchify
from numpy.typing import NDArray

from pipeline.graph import Graph
from pipeline.handoff import Latents, check_finite
from pipeline.onednn import use_onednn
from pipeline.opening import begin_with
from pipeline.probe import AudioFormat, Frames, Probe, check_probe, probe
from pipeline.recipe import FinishSpec
from pipeline.request import RenderRequest
from pipeline.state import make_state
from pipeline.video import VideoWriter, write_poster


@dataclass(frozen=True)
class Decoded:
    """A clip's frames, in chunks as they are decoded, and its sound where the family has it."""

    frames: Iterator[Frames]
    """uint8 RGB, (n, height, width, 3) each; as many in all as requested, or fewer."""
    width: int
    height: int
    audio: NDArray[np.float32] | None = None
    """(channels, samples) between -1 and 1."""
    sample_rate: int = 0


@dataclass(frozen=True)
class Developed:
    """The two files of a finished clip, and what decoding the video again has shown of it."""

    video: Path
    poster: Path
    probe: Probe


class Decoder:
    """The decode stage of a graph with its weights on one device."""

    def __init__(self, graph: Graph, device: str = "cpu", onednn: bool = False) -> None:
        """Load the stage's weights onto `device`; with `onednn`, see `pipeline.onednn`."""
        self.stage = graph.load("decode", device)
        self.device = device
        vae = getattr(self.stage.pipeline, "vae", None)
        if onednn and device == "cpu" and vae is not None:
            use_onednn(vae)
        self._streamed: AutoencoderKLWan | None = None
        if isinstance(vae, AutoencoderKLWan) and not vae.use_tiling:
            self._streamed = vae
            self._captured: list[torch.Tensor] = []
            setattr(vae, "decode", self._capture)  # noqa: B010 - an instance's own method

    def decode(self, request: RenderRequest, latents: Latents) -> Decoded:
        """Return the clip's frames; what can be decoded lazily is decoded as they are read.

        Raises:
            NotFiniteError: the latents hold NaN or infinite values.
            ValueError: the frames do, as they are read.
        """
        check_finite(latents.values)
        self._captured = []
        state = make_state(request, self.stage.blocks, latents.to(self.device))
        self.stage.run(state)
        if self._streamed is not None:
            chunks = self._stream(self._streamed, self._captured)
        else:
            chunks = iter([_to_uint8(cast(Any, state.get("videos"))[0])])
        clip = Decoded(
            frames=_take(chunks, request.num_frames),
            width=latents.values.get("width", request.width),
            height=latents.values.get("height", request.height),
        )
        audio: Any = state.get("audio")
        if audio is None:
            return clip
        samples = np.atleast_2d(audio[0].float().cpu().numpy())
        return replace(clip, audio=samples, sample_rate=self._sample_rate())

    def _capture(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        """Stand in for the VAE's decode: keep its argument, return a video of no frames."""
        self._captured.append(z)
        return (z.new_zeros((z.shape[0], 3, 0, 8, 8)),)

    def _stream(self, vae: AutoencoderKLWan, captured: list[torch.Tensor]) -> Iterator[Frames]:
        processor = self.stage.pipeline.video_processor
        for z in captured:
            for chunk in decode_frames(vae, z):
                yield _to_uint8(processor.postprocess_video(chunk, output_type="np")[0])

    def _sample_rate(self) -> int:
        """Return the samples a second of the sound, from the model that makes it."""
        for key in ("output_sampling_rate", "sampling_rate"):
            for component in self.stage.pipeline.components.values():
                if key in getattr(component, "config", {}):
                    return int(component.config[key])
        raise ValueError("the decode blocks yield sound, but no model of theirs names its rate")


class Developer:
    """Decodes latents and writes the files of a clip."""

    def __init__(
        self, graph: Graph, finish: FinishSpec, device: str = "cpu", onednn: bool = False
    ) -> None:
        """Load the decode stage onto `device`; with `onednn`, see `pipeline.onednn`."""
        self._decoder = Decoder(graph, device, onednn)
        self._finish = finish

    def develop(
        self,
        request: RenderRequest,
        latents: bytes,
        folder: Path,
        opening: Iterable[Frames] = (),
    ) -> Developed:
        """Write `video.mp4` and `poster.jpg` into `folder` from packed `Latents`.

        `opening` are the frames that the clip begins with.

        Raises:
            NotFiniteError: the latents hold NaN or infinite values.
            ValueError: the frames do.
            ProbeError: the written video, decoded again, is not what was asked for.
        """
        data = Latents.from_bytes(latents, self._decoder.device)
        decoded = self._decoder.decode(request, data)
        video, poster = folder / "video.mp4", folder / "poster.jpg"
        audio = None
        if decoded.audio is not None:
            audio = AudioFormat(decoded.sample_rate, decoded.audio.shape[0])
        poster_at = request.total_frames // 2
        size = (decoded.width, decoded.height)
        with VideoWriter(video, *size, request.fps, self._finish, audio) as writer:
            for frames in begin_with(request, opening, decoded.frames):
                place = poster_at - writer.num_frames
                if 0 <= place < len(frames):
                    write_poster(frames[place], poster, self._finish.poster_quality)
                writer.write(frames)
            if decoded.audio is not None:
                writer.write_audio(decoded.audio)
        seen = probe(video)
        check_probe(seen, *size, request.total_frames, request.fps, audio)
        return Developed(video, poster, seen)


def decode_frames(vae: AutoencoderKLWan, z: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield what `vae.decode(z)` returns, one latent frame's worth at a time.

    Args:
        vae: a Wan VAE that does not tile.
        z: denormalised latents, (1, channels, latent frames, height, width).

    Source: `AutoencoderKLWan._decode` in diffusers 0.42, which keeps all frames until the end.
    """
    patch_size = cast(Any, vae.config).patch_size
    with torch.no_grad():
        vae.clear_cache()
        x = vae.post_quant_conv(z)
        for i in range(x.shape[2]):
            vae._conv_idx = [0]  # pyright: ignore[reportPrivateUsage]
            chunk = vae.decoder(
                x[:, :, i : i + 1],
                feat_cache=vae._feat_map,  # pyright: ignore[reportPrivateUsage]
                feat_idx=vae._conv_idx,  # pyright: ignore[reportPrivateUsage]
                first_chunk=i == 0,
            )
            if patch_size is not None:
                chunk = unpatchify(chunk, patch_size=patch_size)
            yield chunk.clamp(-1.0, 1.0)
        vae.clear_cache()


def _take(chunks: Iterator[Frames], count: int) -> Iterator[Frames]:
    """Yield the first `count` frames of `chunks`, in chunks."""
    for chunk in chunks:
        yield chunk[:count]
        count -= len(chunk)
        if count <= 0:
            return


def _to_uint8(frames: NDArray[Any]) -> Frames:
    """Return frames in [0, 1] as 8-bit levels, to the nearest."""
    if not np.isfinite(frames).all():
        raise ValueError("the decoded frames are not finite: try the VAE in float32")
    return np.rint(frames.clip(0, 1) * 255).astype(np.uint8)
