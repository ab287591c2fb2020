"""The probe, against real files, whole and damaged."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from pipeline.probe import AudioFormat, ProbeError, check_probe, frame_rate, probe
from tests.support.clips import moving_frames, write_clip


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (24, Fraction(24)),
        (16.0, Fraction(16)),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
        (1 / 3, Fraction(1, 3)),
    ],
)
def test_frame_rate_is_exact(fps: float, exact: Fraction):
    assert frame_rate(fps) == exact


@pytest.mark.parametrize("fps", [0.0, -24.0, float("nan"), float("inf")])
def test_frame_rate_refuses_what_is_no_rate(fps: float):
    with pytest.raises(ValueError, match="fps"):
        frame_rate(fps)


@pytest.mark.parametrize(("rate", "channels"), [(44000, 2), (48000, 3), (48000, 0)])
def test_audio_format_refuses_what_aac_cant_hold(rate: int, channels: int):
    with pytest.raises(ValueError, match="audio: "):
        AudioFormat(rate, channels)


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error(tmp_path: Path, kept: float):
    path = write_clip(tmp_path / "a.mp4", moving_frames(24))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ProbeError, match=r"a\.mp4"):
        probe(path)


def test_a_damaged_file_is_an_error(tmp_path: Path):
    path = write_clip(tmp_path / "a.mp4", moving_frames(24))
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(ProbeError):
        probe(path)


def test_no_video_is_an_error(tmp_path: Path):
    with pytest.raises(ProbeError):
        probe(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(ProbeError):
        probe(tmp_path / "text.mp4")


def test_check_probe_says_what_differs(tmp_path: Path):
    found = probe(write_clip(tmp_path / "a.mp4", moving_frames(5), 24))
    with pytest.raises(ProbeError, match=r"size: got \(64, 48\), expected \(128, 48\)"):
        check_probe(found, 128, 48, 5, 24)
    with pytest.raises(ProbeError, match="num_frames: got 5, expected 9; fps: got 24, expected 16"):
        check_probe(found, 64, 48, 9, 16)
    with pytest.raises(ProbeError, match="has_audio: got False, expected True"):
        check_probe(found, 64, 48, 5, 24, AudioFormat(24000, 2))


def test_faststart_is_found_out(tmp_path: Path):
    slow = tmp_path / "slow.mp4"
    with av.open(slow, "w") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in moving_frames(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    assert not probe(slow).faststart
    with pytest.raises(ProbeError, match="faststart: got False"):
        check_probe(probe(slow), 64, 48, 3, 24)
