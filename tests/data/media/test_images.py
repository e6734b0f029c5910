"""Image files: every kind gives the pixels that viewers show, and every hostile one a line, within bounds."""

import functools
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from data.media import images
from data.media.images import decode, encode_png
from lm.errors import UserError
from tests.data.media.pictures import picture, saved


def test_a_lossless_file_gives_its_pixels():
    pixels = picture(20, 31)
    for format, options in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.array_equal(decode(saved(pixels, format, **options), format), pixels)
    assert np.array_equal(decode(encode_png(pixels), "png"), pixels)
    jpeg = decode(saved(pixels, "JPEG", quality=95, subsampling=0), "jpeg")
    assert np.abs(jpeg.astype(int) - pixels).mean() < 4


def test_transparent_pixels_are_white():
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[:2, :, 3], pixels[2, :, 3] = 200, 255, 128
    rgb = decode(saved(pixels), "rgba")
    assert rgb[0, 0].tolist() == [200, 0, 0] and rgb[3, 0].tolist() == [255, 255, 255]
    assert np.abs(rgb[2, 0].astype(int) - [227, 127, 127]).max() <= 1
    assert decode(saved(Image.new("LA", (6, 4), (10, 0))), "la").min() == 255
    palette = Image.frombytes("P", (2, 1), b"\0\1")
    palette.putpalette([9, 8, 7, 6, 5, 4])
    assert decode(saved(palette), "p").tolist() == [[[9, 8, 7], [6, 5, 4]]]
    assert decode(saved(palette, transparency=0), "p").tolist() == [[[255, 255, 255], [6, 5, 4]]]
    assert decode(saved(palette, "GIF", transparency=1), "gif").tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_sixteen_bits_and_other_modes():
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert decode(saved(Image.fromarray(deep)), "16")[0, :, 1].tolist() == [0, 0, 1, 128, 255]
    colours = b"\0" + struct.pack(">6H", 0x1234, 0xFFFF, 0, 0x00FF, 0x0100, 0x8000)
    assert decode(png(2, 1, colours, depth=16), "rgb 16").tolist() == [[[0x12, 0xFF, 0], [0, 1, 0x80]]]
    assert decode(saved(Image.fromarray(np.array([[0, 255]], np.uint8))), "grey").tolist() == [[[0] * 3, [255] * 3]]
    assert decode(saved(Image.new("1", (2, 2), 1)), "bits").min() == 255
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.abs(decode(saved(cmyk, "JPEG"), "cmyk").astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_says_how_to_rotate(orientation):
    """The camera stores an image turned or mirrored; viewers undo it."""
    upright = picture(6, 9)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(saved(np.ascontiguousarray(stored), "PNG", exif=exif), "png"), upright)


def test_the_first_picture_of_a_camera_that_writes_several():
    first, second = (Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (10, 200))
    several = saved(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(several)).n_frames == 2
    assert np.abs(decode(several, "mpo").astype(int) - 10).max() <= 2


def png(width: int, height: int, rows: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    """Return a PNG file with any header and any compressed rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@functools.cache
def hostile() -> dict[str, tuple[bytes, str]]:
    """Return (file, words of the error) by name."""
    frames = [Image.fromarray(picture(8, 8, seed)) for seed in range(3)]
    whole = {format: saved(picture(64, 64), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")}
    progressive = saved(Image.new("L", (512, 512)), "JPEG", progressive=True)
    last = progressive[progressive.rfind(b"\xff\xda") : -2]
    cases = {
        "wide": (png(100_000, 100), "100,000 × 100"),
        "bomb": (png(10_000, 10_000), "10,000 × 10,000"),
        "larger bomb": (png(60_000, 60_000), "pixels"),
        "largest bomb": (png(2**31 - 1, 2**31 - 1), "pixel|damaged"),
        "no pixels": (png(0, 5), "damaged|0 × 5|no image"),
        "no rows": (png(30, 30), "damaged"),
        "empty": (b"", "no image"),
        "text": (b"<svg onload=alert(1)>" * 9, "no image of the formats"),
        "TIFF": (saved(picture(8, 8), "TIFF"), "no image of the formats"),
        "PDF": (saved(picture(8, 8), "PDF"), "no image of the formats"),
        "long": (b"\xff\xd8" + bytes(images.MAX_BYTES), "33,554,434 bytes"),
        "scans": (progressive[:-2] + last * 5000 + b"\xff\xd9", "scans"),
        "bad EXIF size": (saved(picture(8, 8), "PNG")[:33] + b"\xff\xff\xff\xffeXIf", "damaged"),
    }
    cases |= {f"half {format}": (data[: len(data) // 2], "damaged|no image") for format, data in whole.items()}
    cases |= {f"begin of {format}": (data[:9], "damaged|no image") for format, data in whole.items()}
    for format in ("GIF", "WEBP", "PNG"):
        film = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=50, loop=0)
        cases[f"animated {format}"] = film, "animated"
    return cases


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_file_is_one_line(name):
    data, words = hostile()[name]
    with pytest.raises(UserError, match=f"^file.png: .*({words})") as error:
        decode(data, "file.png")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = np.frombuffer(saved(picture(40, 40), format), np.uint8)
        for _ in range(150):
            data = whole.copy()
            data[rng.integers(0, len(data), rng.integers(1, 12))] = rng.integers(0, 256)
            try:
                pixels = decode(data.tobytes(), "x")
            except UserError:
                continue
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


@pytest.mark.slow
def test_memory_is_bounded():
    """A 40-megapixel file with alpha, which is decoded, and a bomb of 10 gigapixels, which is not."""
    code = """
import resource, sys
from tests.data.media.test_images import *
from lm.errors import UserError
side = int(images.MAX_PIXELS**0.5)
data = saved(Image.new("RGBA", (side, side), (1, 2, 3, 4)), compress_level=1)
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) << 10
open("/proc/self/clear_refs", "w").write("5")
before = peak()
assert decode(data, "large").shape == (side, side, 3)
try: decode(png(100_000, 100_000), "bomb")
except UserError: print(peak() - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 700 << 20


def test_without_pillow_a_line_says_what_to_install():
    code = "import sys; sys.modules['PIL'] = None\nfrom data.media.images import decode\ndecode(b'', 'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: reading images needs the package PIL" in done.stderr and "requirements/media.txt" in done.stderr


def test_files_in_a_stream_are_not_left_open():
    data = io.BytesIO(saved(picture(4, 4))).getvalue()
    assert np.array_equal(decode(data, "a"), decode(data, "b"))
