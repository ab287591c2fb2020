"""The MP4 writer, against real files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.probe import AudioFormat, check_probe, encoded_size, frame_rate, probe, read_frames
from pipeline.recipe import FinishSpec
from pipeline.video import VideoWriter, write_poster
from tests.support.clips import FAST, moving_frames, tone, write_clip

REPOSITORY = Path(__file__).parents[2]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("num_frames", [1, 2, 5, 33])
@pytest.mark.parametrize("fps", [16, 23.976, 29.97, 59.94, 12.345, 0.5])
def test_frame_count_and_times_are_exact(tmp_path: Path, num_frames: int, fps: float):
    path = write_clip(tmp_path / "a.mp4", moving_frames(num_frames), fps)
    found = probe(path)
    check_probe(found, 64, 48, num_frames, fps)
    assert found.duration_s == pytest.approx(num_frames / frame_rate(fps))
    assert not found.has_audio
    with av.open(path) as source:
        times = [frame.pts * frame.time_base for frame in source.decode(video=0)]
        assert times == [k / frame_rate(fps) for k in range(num_frames)]
        source.seek(0)
        assert sum(bool(packet.size) for packet in source.demux(video=0)) == num_frames
        stream = source.streams.video[0]
        assert stream.duration * stream.time_base == num_frames / frame_rate(fps)


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (63, 47), (33, 17)])
def test_odd_sizes_repeat_the_edge(tmp_path: Path, width: int, height: int):
    frames = moving_frames(3, height, width) // 8 * 4 + 60
    path = write_clip(tmp_path / "a.mp4", frames, finish=FinishSpec(crf=1))
    found = probe(path)
    assert (found.width, found.height) == encoded_size(width, height)
    check_probe(found, width, height, 3, 24)
    decoded = read_frames(path)[:, :height, :width].astype(int)
    assert np.abs(decoded - frames).mean() < 4


@pytest.mark.parametrize(
    "colour",
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 40, 90)],
)
def test_colours_come_back(tmp_path: Path, colour: tuple[int, int, int]):
    frames = np.full((3, 48, 64, 3), colour, np.uint8)
    decoded = read_frames(write_clip(tmp_path / "a.mp4", frames)).astype(int)
    assert np.abs(decoded - frames).max() <= 3


def test_colours_are_limited_range_bt709_in_numbers_and_tags(tmp_path: Path):
    path = write_clip(tmp_path / "a.mp4", np.full((1, 48, 64, 3), (255, 0, 0), np.uint8))
    with av.open(path) as source:
        context = source.streams.video[0].codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace)
        assert (*tags, context.color_range) == (1, 1, 1, 1)
        planes = next(source.decode(video=0)).to_ndarray()
    red_by_bt709 = (63, 102, 240)  # by BT.601 it is (81, 90, 240)
    got = (planes[0, 0], planes[50, 0], planes[-1, 0])
    assert np.abs(np.subtract(got, red_by_bt709, dtype=int)).max() <= 2
    assert b"colrnclx" in path.read_bytes()


def test_chunking_changes_no_byte(tmp_path: Path):
    frames = moving_frames(13)
    whole = write_clip(tmp_path / "whole.mp4", frames)
    for sizes in ([1] * 13, [4, 0, 9], [12, 1]):
        path = tmp_path / "chunks.mp4"
        with VideoWriter(path, 64, 48, 24, FAST) as writer:
            done = 0
            for size in sizes:
                writer.write(frames[done : done + size])
                done += size
        assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("sound", [False, True])
def test_another_process_writes_the_same_bytes(tmp_path: Path, sound: bool):
    script = f"""
import sys
from tests.support.clips import *
audio = AudioFormat(24000, 2) if {sound} else None
with VideoWriter(sys.argv[1], 64, 48, 24, FAST, audio) as writer:
    writer.write(moving_frames(9))
    if audio: writer.write_audio(tone(9 / 24, audio))
"""
    paths = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    for path in paths:
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=REPOSITORY)
    assert digest(paths[0]) == digest(paths[1])


def test_the_same_frames_are_the_same_bytes_every_time(tmp_path: Path):
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, (17, 16, 16, 3)).repeat(4, axis=1).repeat(4, axis=2)
    drift = np.stack([np.roll(noise[0], number, axis=1) for number in range(17)])
    frames = (0.7 * drift + 0.3 * noise).astype(np.uint8)
    files: set[bytes] = set()
    for number in range(12):
        # Memory that is used again holds something else each time, and must not matter.
        _ = [random.bytes(777 * number) for _ in range(10)]
        path = tmp_path / f"{number}.mp4"
        with VideoWriter(path, 64, 64, 8, FinishSpec()) as writer:
            writer.write(frames)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_crf_and_preset_are_the_finish_spec(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 48, 64, 3), np.uint8)
    fine = write_clip(tmp_path / "fine.mp4", frames, finish=FinishSpec(crf=10, preset="fast"))
    coarse = write_clip(tmp_path / "coarse.mp4", frames, finish=FinishSpec(crf=40, preset="fast"))
    assert fine.stat().st_size > 2 * coarse.stat().st_size
    assert b"rc=crf" in fine.read_bytes()
    assert b"crf=10.0" in fine.read_bytes()


@pytest.mark.parametrize(
    ("rate", "channels", "num_frames", "error_s"),
    [(24000, 2, 48, 0.0), (48000, 1, 25, -0.2), (44100, 2, 25, 0.2), (16000, 1, 1, 0.01)],
)
def test_sound_is_as_long_as_the_picture(
    tmp_path: Path, rate: int, channels: int, num_frames: int, error_s: float
):
    audio = AudioFormat(rate, channels)
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 48, 24, FAST, audio) as writer:
        writer.write(moving_frames(num_frames))
        writer.write_audio(tone(num_frames / 24 + error_s, audio))
    found = probe(path)
    check_probe(found, 64, 48, num_frames, 24, audio)
    assert found.has_audio
    assert found.faststart
    assert abs(found.audio_duration_s - num_frames / 24) <= 1024 / rate
    assert list(tmp_path.iterdir()) == [path]


def test_sound_is_in_step_and_interleaved(tmp_path: Path):
    audio = AudioFormat(24000, 1)
    samples = tone(2.0, audio)
    samples[:, :12000] = 0
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 48, 24, FAST, audio) as writer:
        for block in np.array_split(samples, 7, axis=1):
            writer.write_audio(block)
        writer.write(moving_frames(48))
    with av.open(path) as source:
        heard = np.concatenate([f.to_ndarray() for f in source.decode(audio=0)], 1)[0]
    onset = int(np.argmax(np.abs(heard) > 0.1))
    assert abs(onset - 12000) < 200
    assert np.corrcoef(heard[13000:47000], samples[0, 13000:47000])[0, 1] > 0.99
    with av.open(path) as source:
        ends = {"video": 0.0, "audio": 0.0}
        for packet in source.demux():
            if packet.size:
                ends[packet.stream.type] = float(packet.dts * packet.time_base)
                assert abs(ends["video"] - ends["audio"]) < 0.2


def test_sound_of_another_length_is_an_error(tmp_path: Path):
    audio = AudioFormat(24000, 1)
    with pytest.raises(ValueError, match=r"2\.00 s of audio.*expected 1\.00 s"):
        write_bad(tmp_path, moving_frames(24), tone(2.0, audio))
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_nothing(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")

    def stop_midway() -> None:
        with VideoWriter(path, 64, 48, 24, FAST) as writer:
            writer.write(moving_frames(5))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        stop_midway()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_no_frames_is_an_error(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match="no frame"), VideoWriter(path, 64, 48, 24, FAST):
        pass
    with (
        pytest.raises(ValueError, match="no audio"),
        VideoWriter(path, 64, 48, 24, FAST, AudioFormat(24000, 1)) as writer,
    ):
        writer.write(moving_frames(1))
    assert not list(tmp_path.iterdir())


def test_wrong_frames_and_samples_say_what_was_expected(tmp_path: Path):
    for frames in (moving_frames(1, 48, 48), moving_frames(1).astype(np.float32)):
        with pytest.raises(ValueError, match=r"expected uint8 \(n, 48, 64, 3\)"):
            write_bad(tmp_path, frames, None)
    for samples in (np.zeros((2, 9), np.float32), np.zeros((1, 9), np.float64)):
        with pytest.raises(ValueError, match=r"expected float32 \(1, n\)"):
            write_bad(tmp_path, moving_frames(1), samples)
    with pytest.raises(ValueError, match="NaN"):
        write_bad(tmp_path, moving_frames(1), np.full((1, 9), np.nan, np.float32))


def write_bad(folder: Path, frames, samples) -> None:
    audio = None if samples is None else AudioFormat(24000, 1)
    with VideoWriter(folder / "a.mp4", 64, 48, 24, FAST, audio) as writer:
        writer.write(frames)
        if samples is not None:
            writer.write_audio(samples)


def test_memory_does_not_grow_with_length(tmp_path: Path):
    def peak(num_frames: int) -> int:
        tracemalloc.start()
        with VideoWriter(tmp_path / "a.mp4", 320, 192, 24, FinishSpec(preset="ultrafast")) as w:
            for start in range(0, num_frames, 4):
                w.write(moving_frames(4, 192, 320, start))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(480) < peak(48) + 2**20


def test_poster(tmp_path: Path):
    frame = moving_frames(1, 47, 63)[0]
    write_poster(frame, tmp_path / "a.jpg", 88)
    write_poster(frame.copy(), tmp_path / "b.jpg", 88)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "JPEG"
        assert image.size == (63, 47)
