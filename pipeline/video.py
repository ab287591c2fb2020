"""Frames into MP4 files and back: write, probe, poster. No torch; needs PyAV alone.

The file is what every player can play: H.264 in yuv420p, limited-range BT.709 in both the numbers
and the tags, AAC where there is sound, the index before the media. The same frames make the same
bytes in any process: one encoder thread, nothing of the clock or the machine in the file.
"""

# PyAV's own hints are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    VideoReformatter,
)
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from pipeline.probe import (
    AAC_FRAME,
    SCALING,
    AudioFormat,
    Frames,
    encoded_size,
    frame_rate,
)
from pipeline.recipe import FinishSpec

_LAYOUTS = {1: "mono", 2: "stereo"}
_AUDIO_SLACK_S = 0.5
"""Sound may differ from the video by this or by a tenth; by more it is another clip's."""


class VideoWriter:
    """Write one MP4 at `path`, which appears complete at the end of the `with` block or not at all.

    `write` takes frames in any number of chunks; `write_audio` takes sound before, between or
    after them. Work in progress is in a folder beside `path`, so memory doesn't grow with length.
    Sound is cut, or filled with silence, to the length of the video; sound of quite another length
    is an error.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float,
        finish: FinishSpec,
        audio: AudioFormat | None = None,
    ) -> None:
        """Open nothing yet. Sizes in pixels, `fps` in frames a second."""
        self.path = Path(path)
        self.width, self.height = width, height
        self.rate = frame_rate(fps)
        self.finish = finish
        self.audio = audio
        self.num_frames = 0
        self.num_samples = 0
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Self:
        """Start the encoder in a new folder beside `path`."""
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        try:
            self._picture = self._folder / "picture.mp4"
            self._sound: BinaryIO = (self._folder / "sound.f32").open("w+b")
            self._output = _open_output(self._picture, faststart=self.audio is None)
            self._stream = self._add_video(self._output)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the file and move it to `path`; after an exception leave nothing."""
        try:
            if error is None:
                finished = self._finish()
                finished.replace(self.path)
        finally:
            with suppress(FFmpegError):  # closed already, unless something failed
                self._output.close()
            self._sound.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, frames: Frames) -> None:
        """Encode uint8 RGB frames (n, height, width, 3), n from 0 up.

        Raises:
            ValueError: another type or shape.
        """
        expected = (self.height, self.width, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != expected:
            raise ValueError(
                f"frames: {frames.dtype} {frames.shape}; expected uint8 (n, {self.height}, "
                f"{self.width}, 3)"
            )
        odd = (0, self.height % 2), (0, self.width % 2), (0, 0)
        for pixels in frames:
            if odd[0][1] or odd[1][1]:
                pixels = np.pad(pixels, odd, mode="edge")
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = self._reformatter.reformat(
                rgb,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=SCALING,
                threads=1,
            )
            frame.color_primaries = ColorPrimaries.BT709
            frame.color_trc = ColorTrc.BT709
            frame.pts, frame.time_base = self.num_frames, 1 / self.rate
            frame.duration = 1
            self._mux(self._stream.encode(frame))
            self.num_frames += 1

    def write_audio(self, samples: NDArray[np.float32]) -> None:
        """Append float32 samples (channels, n) between -1 and 1; louder is clipped.

        Raises:
            ValueError: the writer has no audio, or another type or shape, or not finite.
        """
        if self.audio is None:
            raise ValueError("write_audio: this VideoWriter was made without an AudioFormat")
        channels = self.audio.channels
        if samples.dtype != np.float32 or samples.ndim != 2 or samples.shape[0] != channels:
            raise ValueError(
                f"samples: {samples.dtype} {samples.shape}; expected float32 ({channels}, n)"
            )
        if not np.isfinite(samples).all():
            raise ValueError("samples: NaN or infinite; expected -1 to 1")
        self._sound.write(np.ascontiguousarray(samples.clip(-1, 1).T).tobytes())
        self.num_samples += samples.shape[1]

    def _add_video(self, output: OutputContainer) -> VideoStream:
        # Of small frames, x264's fastest code reads memory that it never wrote: the same 17 frames
        # of 64x64 became 10 different files in 12 runs. This leaves it out, and is as fast.
        parameters = {"x264-params": "cpu-independent=1"}
        options = {"crf": str(self.finish.crf), "preset": self.finish.preset, **parameters}
        stream = output.add_stream("libx264", rate=self.rate, options=options)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width, context.height = encoded_size(self.width, self.height)
        context.pix_fmt = "yuv420p"
        context.time_base = stream.time_base = 1 / self.rate
        context.color_range = ColorRange.MPEG
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.colorspace = Colorspace.ITU709
        context.thread_count = 1
        context.flags |= int(Flags.bitexact)
        return stream

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            packet.duration = packet.duration or 1
            self._output.mux(packet)

    def _finish(self) -> Path:
        if not self.num_frames:
            raise ValueError("VideoWriter: no frame was written")
        self._mux(self._stream.encode(None))
        self._output.close()
        if self.audio is None:
            return self._picture
        if not self.num_samples:
            raise ValueError("VideoWriter: no audio was written, though its AudioFormat was given")
        seconds = self.num_samples / self.audio.sample_rate
        expected = float(self.num_frames / self.rate)
        if abs(seconds - expected) > max(_AUDIO_SLACK_S, expected / 10):
            raise ValueError(
                f"VideoWriter: {seconds:.2f} s of audio at {self.audio.sample_rate} Hz; expected "
                f"{expected:.2f} s, the video's length"
            )
        finished = self._folder / "finished.mp4"
        self._join(self.audio, finished)
        return finished

    def _join(self, audio: AudioFormat, finished: Path) -> None:
        """Write picture and sound into one file, interleaved by time."""
        bit_rate = min(self.finish.audio_bitrate, audio.sample_rate * audio.channels * 6)
        with av.open(self._picture) as source, _open_output(finished, faststart=True) as output:
            picture = output.add_stream_from_template(source.streams.video[0])
            sound = output.add_stream("aac", rate=audio.sample_rate)
            sound.codec_context.layout = _LAYOUTS[audio.channels]
            sound.codec_context.format = "fltp"
            sound.codec_context.bit_rate = bit_rate
            sound.codec_context.thread_count = 1
            sound.codec_context.flags |= int(Flags.bitexact)
            blocks = self._read_sound(audio)
            start = 0  # of the next block of sound, in samples
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is None:
                    continue  # the end of the file
                while start <= packet.dts * packet.time_base * audio.sample_rate:
                    block = next(blocks, None)
                    if block is None:
                        break
                    output.mux(sound.encode(_sound_frame(block, start, audio)))
                    start += block.shape[1]
                packet.stream = picture
                output.mux(packet)
            for block in blocks:
                output.mux(sound.encode(_sound_frame(block, start, audio)))
                start += block.shape[1]
            output.mux(sound.encode(None))

    def _read_sound(self, audio: AudioFormat) -> Iterator[NDArray[np.float32]]:
        """Yield the sound in AAC frames (channels, up to 1024), as long in all as the video."""
        left = round(self.num_frames / self.rate * audio.sample_rate)
        self._sound.seek(0)
        while left > 0:
            size = min(AAC_FRAME, left)
            data = self._sound.read(4 * size * audio.channels)
            block = np.zeros((size, audio.channels), np.float32)
            block.reshape(-1)[: len(data) // 4] = np.frombuffer(data, np.float32)
            yield np.ascontiguousarray(block.T)
            left -= size


def _open_output(path: Path, *, faststart: bool) -> OutputContainer:
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if faststart else {})
    return av.open(path, "w", format="mp4", container_options=options)


def _sound_frame(block: NDArray[np.float32], start: int, audio: AudioFormat) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=_LAYOUTS[audio.channels])
    frame.sample_rate = audio.sample_rate
    frame.pts, frame.time_base = start, Fraction(1, audio.sample_rate)
    return frame


def write_poster(frame: NDArray[np.uint8], path: str | Path, quality: int) -> None:
    """Write one RGB frame (height, width, 3) as a JPEG of this quality, 1 to 95."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.save(path, "JPEG", quality=quality, optimize=True, progressive=True)
