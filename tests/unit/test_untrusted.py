"""What strangers send becomes a plain file of ours, or an error that says why; never more."""

from __future__ import annotations

import io
import struct
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import untrusted
from pipeline.probe import probe, read_frames
from pipeline.untrusted import MAX_FRAMES, UntrustedError, remake_image, remake_video
from tests.support.media import encode_video, make_frames, make_image, make_video, read_image

RED, BLUE, WHITE = (200, 0, 0), (0, 0, 200), (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_becomes_a_png_of_the_size(kind: str) -> None:
    made = remake_image(make_image(96, 64, kind), 64, 64)
    assert made.startswith(b"\x89PNG")
    pixels = read_image(made).astype(int)
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels[32, 4] - RED).max() < 12
    assert np.abs(pixels[32, 60] - BLUE).max() < 12


def test_what_has_the_size_already_stays_as_it_is() -> None:
    image = make_image(64, 48)
    assert (read_image(remake_image(image, 64, 48)) == read_image(image)).all()


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # its camera was held upright: to be turned by 90 degrees
    pixels = read_image(remake_image(make_image(64, 64, "JPEG", exif=exif), 64, 64)).astype(int)
    assert np.abs(pixels[4, 32] - RED).max() < 12
    assert np.abs(pixels[60, 32] - BLUE).max() < 12


def test_of_a_photo_with_more_pictures_behind_it_the_first_is_taken() -> None:
    file, small = io.BytesIO(), Image.new("RGB", (16, 16), "green")
    photo = Image.open(io.BytesIO(make_image(64, 64, "PNG")))
    photo.save(file, "MPO", save_all=True, append_images=[small], quality=95)
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    pixels = read_image(remake_image(file.getvalue(), 64, 64)).astype(int)
    assert np.abs(pixels[32, 4] - RED).max() < 12


def test_what_is_transparent_becomes_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(file, "PNG")
    assert (read_image(remake_image(file.getvalue(), 32, 32)) == WHITE).all()


def test_nothing_but_the_picture_is_left_of_a_file_that_is_two() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("evil.txt", "a second file")
    both = make_image(comment=b"<script>") + archive.getvalue()
    assert zipfile.is_zipfile(io.BytesIO(both))
    made = remake_image(both, 64, 64)
    assert not zipfile.is_zipfile(io.BytesIO(made))
    assert b"evil" not in made
    assert set(read_chunks(made)) == {b"IHDR", b"IDAT", b"IEND"}


def read_chunks(png: bytes) -> list[bytes]:
    """Return the names of a PNG's chunks."""
    names, at = list[bytes](), 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8])
        at += 12 + size
    return names


def claim_size(width: int, height: int) -> bytes:
    """Return a small PNG whose header says that it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def animate() -> bytes:
    file = io.BytesIO()
    first, second = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    first.save(file, "WEBP", save_all=True, append_images=[second])
    return file.getvalue()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "none of them"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of them"),
        (b"%PDF-1.7", "none of them"),
        (make_image(kind="GIF"), "none of them"),
        (make_image(kind="TIFF"), "none of them"),
        (make_image(kind="BMP"), "none of them"),
        (make_image()[:90], "damaged"),
        (make_image()[:60] + bytes(400), "damaged"),
        (claim_size(60_000, 60_000), "got 60000x60000, expected up to"),
        (claim_size(4000, 4000), "damaged"),
        (animate(), "animation"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(sent: bytes, said: str) -> None:
    with pytest.raises(UntrustedError, match=said):
        remake_image(sent, 64, 64)


def test_what_decoders_say_is_told_to_nobody() -> None:
    """A field of this EXIF is longer than the file: Pillow warns, and names its own source."""
    field = struct.pack("<HHII", 0x11A, 5, 1, 0xFFFF)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 32) + field
    file = io.BytesIO()
    Image.effect_noise((400, 400), 50).save(file, "JPEG", exif=exif)
    sent = file.getvalue()
    with pytest.raises(UntrustedError) as refused:
        remake_image(sent[: len(sent) // 2], 64, 64)
    assert str(refused.value) == "expected an image: PNG, JPEG, WEBP; this one is damaged"


def test_a_process_that_is_ended_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = "import os, tempfile; open(f'{tempfile.mkdtemp()}/a', 'w').close(); "
    seen = tmp_path / "seen"
    told += f"open({str(seen)!r}, 'w').write(tempfile.gettempdir()); os.abort()"
    monkeypatch.setattr(untrusted, "COMMAND", (sys.executable, "-c", told))
    with pytest.raises(UntrustedError, match="memory and time"):
        remake_video(b"")
    assert Path(seen.read_text()).parent == tmp_path
    assert list(tmp_path.iterdir()) == [seen]


def test_a_file_that_grows_beyond_bounds_ends_its_own_process_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bomb = make_image(5000, 5000)
    assert len(bomb) < 100_000
    assert remake_image(bomb, 64, 64)
    monkeypatch.setattr(untrusted, "MAX_MEMORY_BYTES", 400 << 20)
    with pytest.raises(UntrustedError, match="memory and time"):
        remake_image(bomb, 64, 64)


def test_the_process_that_decodes_is_given_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    told = "import os, sys; sys.stdout.write(' '.join(os.environ))"
    monkeypatch.setattr(untrusted, "COMMAND", (sys.executable, "-c", told))
    names = remake_image(b"", 1, 1).split()
    assert b"PYTHONPATH" in names
    assert not [name for name in names if b"AWS" in name or b"RUSHES" in name]


def test_a_video_is_encoded_anew_and_has_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "made.mp4"
    path.write_bytes(remake_video(make_video(tmp_path)))
    seen = probe(path)
    assert (seen.width, seen.height, seen.num_frames, float(seen.fps)) == (64, 64, 9, 8.0)
    assert not seen.has_audio
    assert np.abs(read_frames(path).astype(int) - make_frames()).max() < 8


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "damaged, or none"),
        (make_image(), "damaged, or none"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "damaged, or none"),
        (encode_video("mjpeg", "avi"), "damaged, or none"),
        (encode_video("mjpeg", "mp4"), "got mjpeg, expected one of h264"),
        (encode_video("libx264", "mp4")[:900], "no video"),
        (encode_video("libx264", "mp4", MAX_FRAMES + 1), "too long"),
    ],
)
def test_what_is_no_video_is_refused_with_the_reason(sent: bytes, said: str) -> None:
    with pytest.raises(UntrustedError, match=said):
        remake_video(sent)


def test_a_folder_with_a_module_of_the_same_name_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline.py").write_text("raise ImportError('not ours')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UntrustedError, match="expected an image"):
        remake_image(b"no image", 64, 64)
