"""t2i/images.py: bytes on disk -> RGB -> square uint8 -> [-1, 1] and back."""

import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from t2i import images
from t2i.errors import InputError


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels(source: bytes) -> np.ndarray:
    return np.asarray(images.decode(source))


# ---- decode ----


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_decode_reads_every_format_and_names_it(kind: str) -> None:
    flat = Image.new("RGB", (7, 5), (200, 40, 60))
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = images.decode(encoded(flat, kind, **options))
    assert (picture.mode, picture.size, picture.format) == ("RGB", (7, 5), kind)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(flat)).max() <= (3 if kind in ("JPEG", "GIF") else 0)


def test_decode_lossless_is_exact() -> None:
    for kind in ("PNG", "BMP"):
        assert (pixels(encoded(Image.fromarray(noise(9, 13)), kind)) == noise(9, 13)).all()


def test_transparency_goes_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 255
    rgba[0, :, 3] = 255, 128, 0
    got = pixels(encoded(Image.fromarray(rgba)))[0]
    assert got[0].tolist() == [255, 0, 0] and got[2].tolist() == [255, 255, 255]
    assert got[1][0] == 255 and abs(int(got[1][1]) - 127) <= 1

    grey = np.array([[[0, 255], [0, 0]]], np.uint8)
    assert pixels(encoded(Image.fromarray(grey, "LA")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert pixels(encoded(palette, transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_colour_key_transparency_goes_on_white() -> None:
    keyed = encoded(Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)), transparency=(9, 9, 9))
    assert pixels(keyed)[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    levels = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    assert pixels(encoded(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 0, 1, 156, 255]


def test_one_bit_grey_and_cmyk() -> None:
    assert pixels(encoded(Image.new("1", (2, 2), 1))).min() == 255
    assert pixels(encoded(Image.new("L", (2, 2), 77)))[0, 0].tolist() == [77, 77, 77]
    cyan = pixels(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))[4, 4]
    assert cyan[0] < 10 and cyan[1] > 245 and cyan[2] > 245


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    # the stored picture is turned the way a camera would, so decoding must give the upright one
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = (255, 0, 0)
    upright[8:, 12:] = (0, 0, 255)
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(Image.fromarray(np.ascontiguousarray(store(upright))), kind, exif=exif)
    got = pixels(source)
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).mean() < (12 if kind == "JPEG" else 1e-9)  # wrong turns: over 80


def test_damaged_exif_does_not_cost_the_picture() -> None:
    source = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0XX*\0nonsense")
    assert pixels(source)[4, 4, 0] > 240


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


def test_one_pixel() -> None:
    assert pixels(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


def big_png(width: int, height: int) -> bytes:
    """Returns a PNG whose header claims a size, without pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = encoded(Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "not a PNG"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encoded(Image.fromarray(noise(64, 64)))[:2000], "truncated"),
        (encoded(Image.fromarray(noise(8, 8)), "TIFF"), "not a PNG"),
        (big_png(17_000, 10), "17000x10"),
        (big_png(16_000, 14_000), "16000x14000"),
        (big_png(200_000, 200_000), "200000x200000 pixels, over the limit"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * images.MAX_BYTES, "limit"),
    ],
    ids=["empty", "html", "jpeg-cut", "png-cut", "tiff", "long-side", "many-pixels", "bomb", "many-bytes"],
)
def test_broken_bytes_raise_broken_image(source: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(source)
    for given in (source, path):
        with pytest.raises(images.BrokenImage, match=reason) as raised:
            images.decode(given)
        assert "\n" not in str(raised.value)


def test_missing_file_is_a_broken_image(tmp_path: Path) -> None:
    with pytest.raises(images.BrokenImage, match="No such file"):
        images.decode(tmp_path / "none.png")


def test_a_flipped_bit_in_a_png_never_changes_a_pixel() -> None:
    source = encoded(Image.fromarray(noise(6, 6)))
    broken = 0
    for bit in range(8 * len(source)):
        damaged = bytearray(source)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert (pixels(bytes(damaged)) == noise(6, 6)).all()
        except images.BrokenImage:
            broken += 1
    assert broken > 0.8 * 8 * len(source)


def test_reading_a_file_takes_the_memory_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "small.jpg"
    path.write_bytes(bytes(10_000))
    tracemalloc.start()
    try:
        assert images.read_limited(path) == bytes(10_000)
        assert tracemalloc.get_traced_memory()[1] < 300_000  # not MAX_BYTES
    finally:
        tracemalloc.stop()


def test_what_is_rgb_is_not_copied() -> None:
    image = Image.new("RGB", (4, 4), "red")
    assert images._to_rgb(image) is image
    assert images._to_rgb(Image.new("L", (4, 4))).mode == "RGB"


def test_decode_is_safe_in_threads() -> None:
    sources = [encoded(Image.fromarray(noise(20, 20, k))) for k in range(50)]
    with ThreadPoolExecutor(8) as pool:
        for k, got in enumerate(pool.map(pixels, sources)):
            assert (got == noise(20, 20, k)).all()


# ---- fit ----


@pytest.mark.parametrize("how", ["center", "random", "squash", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 16_384), (16_384, 2), (33, 31), (16, 16)])
def test_fit_gives_the_square_whatever_the_picture(how: images.Fit, size: tuple[int, int]) -> None:
    out = images.fit(Image.new("RGB", size, (10, 200, 30)), 16, how, (0.9, 0.1))
    assert out.shape == (16, 16, 3) and out.dtype == np.uint8
    inside = (out == (10, 200, 30)).all(-1)
    assert inside.all() if how != "pad" or size[0] == size[1] else inside.any()


@pytest.mark.parametrize("how", ["center", "random", "squash", "pad"])
def test_fit_of_the_right_size_changes_no_pixel(how: images.Fit) -> None:
    assert (images.fit(Image.fromarray(noise(24, 24)), 24, how) == noise(24, 24)).all()


def test_fit_crops_where_it_is_told() -> None:
    wide = noise(8, 20)
    picture = Image.fromarray(wide)
    assert (images.fit(picture, 8, "center") == wide[:, 6:14]).all()
    assert (images.fit(picture, 8, "random", (0.0, 0.7)) == wide[:, :8]).all()
    assert (images.fit(picture, 8, "random", (1.0, 0.7)) == wide[:, 12:]).all()
    tall = Image.fromarray(wide.swapaxes(0, 1).copy())
    assert (images.fit(tall, 8, "random", (0.3, 1.0)) == wide[:, 12:].swapaxes(0, 1)).all()


def test_fit_center_scales_the_largest_square() -> None:
    picture = Image.fromarray(noise(40, 100))
    expected = picture.crop((30, 0, 70, 40)).resize((10, 10), Image.Resampling.BICUBIC)
    got = images.fit(picture, 10).astype(int)
    # inside, where the filter does not reach over the edge of the crop
    assert (got[:, 2:-2] == np.asarray(expected)[:, 2:-2]).all()


def test_fit_squash_and_pad() -> None:
    half = np.zeros((10, 40, 3), np.uint8)
    half[:, 20:] = 255
    squashed = images.fit(Image.fromarray(half), 10, "squash")
    assert squashed[:, 0].max() == 0 and squashed[:, -1].min() == 255
    padded = images.fit(Image.new("RGB", (40, 20), "black"), 20, "pad")
    assert (padded[5:15] == 0).all() and (padded[:5] == 255).all() and (padded[15:] == 255).all()


def test_fit_antialiases() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(images.fit(Image.fromarray(stripes), 16).astype(int) - 127).max() <= 3


# ---- the model's range ----


def test_uint8_to_model_and_back_is_exact() -> None:
    batch = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    batch[..., 1] = batch[..., 1][:, ::-1]
    tensor = images.to_model(batch)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    back = images.to_uint8(tensor)
    assert back.dtype == np.uint8 and (back == batch).all()
    assert (images.to_uint8(tensor.bfloat16()).astype(int) - batch).max() <= 1


def test_to_uint8_rounds_half_up_and_clips() -> None:
    def level_of(value: torch.Tensor) -> list[int]:
        return images.to_uint8(value.reshape(1, 1, 1, -1).expand(1, 3, 1, -1))[0, 0, :, 0].tolist()

    level = torch.arange(255)
    half = ((level + 0.5).double() / 127.5 - 1).float()
    exact = (half + 1) * 127.5 == level + 0.5  # float32 cannot say every half
    assert (exact & (level % 2 == 0)).sum() > 20, "rounding to even must be told apart"
    assert level_of(half[exact]) == (level[exact] + 1).tolist()
    assert level_of(torch.tensor([-3.0, 7.0, -0.999, 0.999])) == [0, 255, 0, 255]


# ---- files and sheets ----


def test_save_png_keeps_pixels_and_text(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    images.save_png(noise(5, 4), path, {"prompt": "ein Bär – 熊", "seed": "7"})
    assert (np.asarray(images.decode(path)) == noise(5, 4)).all()
    with Image.open(path) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.text == {"prompt": "ein Bär – 熊", "seed": "7"}


def test_save_png_into_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write .*none"):
        images.save_png(noise(2, 2), tmp_path / "none" / "a.png")


def test_grid_places_each_picture_and_makes_room_for_labels() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (200, 200, 0)]
    pictures = [np.full((4, 4, 3), colour, np.uint8) for colour in colours]
    sheet = images.grid(pictures, columns=3, cell=8)
    assert sheet.size == (3 * 14 + 6, 2 * 14 + 6)
    for k, colour in enumerate(colours):
        assert sheet.getpixel((6 + 14 * (k % 3) + 4, 6 + 14 * (k // 3) + 4)) == colour
    labelled = images.grid(pictures, ["a label"] * 5, columns=3)
    plain = images.grid(pictures, columns=3)
    assert labelled.width == plain.width and labelled.height == plain.height + 2 * 20
    under = np.asarray(labelled)[6 + 128 : 6 + 128 + 20, 6 : 6 + 128]
    assert under.min() < 100 and (np.asarray(labelled)[6 : 6 + 128, 6 : 6 + 128] == (255, 0, 0)).all()


def test_grid_takes_very_long_labels_and_no_picture_is_an_error() -> None:
    sheet = images.grid([noise(8, 8)], ["word " * 2000 + "x" * 5000])
    assert sheet.height < 300
    with pytest.raises(InputError, match="at least one"):
        images.grid([])
