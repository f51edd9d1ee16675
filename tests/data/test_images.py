"""R11, R12: every kind of image becomes upright RGB or an ImageError."""

import io
import resource
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.data.make_files import make_image, noise
from vilem_jax.data.images import (
    SHRINK_MARGIN,
    ImageError,
    crop_box,
    decode,
    random_crop,
    resize_square,
)


def encode(image: Image.Image, form: str, **options) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def rgb(seed=0, width=40, height=32) -> Image.Image:
    return Image.fromarray(noise(seed, width, height))


def bomb(form: str) -> bytes:
    """A small file whose header claims 9000x9000, 81 megapixels."""
    options = {"lossless": True} if form == "WEBP" else {}
    content = bytearray(encode(rgb(), form, **options))
    if form == "PNG":
        content[16:24] = struct.pack(">II", 9000, 9000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif form == "GIF":
        content[6:10] = struct.pack("<HH", 9000, 9000)
    elif form == "WEBP":
        bits = int.from_bytes(content[21:25], "little") & ~0xFFFFFFF
        content[21:25] = (bits | 8999 | 8999 << 14).to_bytes(4, "little")
    elif form == "JPEG":
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = struct.pack(">HH", 9000, 9000)
    elif form == "BMP":
        content[18:26] = struct.pack("<ii", 9000, 9000)
    elif form == "TIFF":
        directory = struct.unpack("<I", content[4:8])[0]
        for i in range(struct.unpack("<H", content[directory : directory + 2])[0]):
            entry = directory + 2 + 12 * i
            tag, kind = struct.unpack("<HH", content[entry : entry + 4])
            if tag in (256, 257):  # width, height
                value = struct.pack("<H" if kind == 3 else "<I", 9000)
                content[entry + 8 : entry + 8 + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_reads_the_formats_people_have(form):
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode(encode(rgb(), form, **options))
    assert pixels.shape == (32, 40, 3) and pixels.dtype == np.uint8
    exact = form in ("PNG", "BMP", "TIFF", "PPM", "WEBP")
    difference = np.abs(pixels.astype(int) - np.asarray(rgb()))
    assert difference.mean() == 0 if exact else difference.mean() < 30


READS_YCBCR = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="Pillow 12 says of a whole YCbCr TIFF that it is truncated",
)


@pytest.mark.parametrize(
    "mode", ["L", "1", "P", "CMYK", pytest.param("YCbCr", marks=READS_YCBCR)]
)
def test_other_colours_become_rgb(mode):
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    source = rgb().convert(mode)
    pixels = decode(encode(source, form))
    np.testing.assert_array_equal(pixels, np.asarray(source.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (250, 20, 20)).convert("CMYK")
    pixels = decode(encode(red, "JPEG", quality=95))
    assert np.abs(pixels.mean((0, 1)) - (250, 20, 20)).max() < 8


def test_sixteen_bits_scale_to_eight():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    pixels = decode(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 128, 255])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_floats_scale_by_their_range():
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    pixels = decode(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_shows_white(mode):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    image = clear.convert(mode) if mode != "P" else clear.quantize()
    pixels = decode(encode(image, "PNG"))
    np.testing.assert_array_equal(pixels[4, 4], [255, 255, 255])
    assert (pixels[0, 0] < 255).any()


# An image that is stored turned, as its orientation says.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def turned(upright: np.ndarray, orientation: int, form: str, mode="RGB") -> bytes:
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(form, {})
    return encode(stored.convert(mode), form, exif=exif, **options)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_becomes_upright(form, orientation, mode):
    upright = np.zeros((160, 240, 3), np.uint8)
    upright[:80, :120] = 255  # the upper left quarter
    content = turned(upright, orientation, form, mode)
    pixels = decode(content)
    assert pixels.shape == upright.shape
    difference = np.abs(pixels.astype(int) - upright)
    assert difference.mean() < 1 if form == "JPEG" else difference.max() == 0
    for seed in range(10):
        crop, expected = (
            random_crop(image, 64, (0.2, 1.0), np.random.default_rng(seed))
            for image in (content, pixels)
        )
        np.testing.assert_array_equal(crop, expected)


def test_an_orientation_in_xmp_counts_too():
    upright = noise(5, 24, 16)
    stored = Image.fromarray(np.ascontiguousarray(TURNED[6](upright)))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    pixels = decode(encode(stored, "WEBP", xmp=xmp, lossless=True))
    np.testing.assert_array_equal(pixels, upright)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    moving = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(moving)[0, 0], [255, 0, 0])


def test_progressive_and_one_pixel():
    assert decode(encode(rgb(), "JPEG", progressive=True)).shape == (32, 40, 3)
    pixel = decode(make_image(7, (1, 1)))
    assert resize_square(pixel, 16).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8\xff",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        bytes(1000),
        make_image(0)[:60],
        make_image(0, (200, 200), "JPEG")[:-700],
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
)
def test_non_images_raise_image_error(content):
    with pytest.raises(ImageError):
        decode(content)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "JPEG", "TIFF", "BMP"])
def test_bombs_are_refused_before_they_are_decoded(form):
    file = bomb(form)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        with pytest.raises(ImageError, match=r"above|more than"):
            decode(file)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_corrupt_bytes_only_raise_image_errors(form):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encode(rgb(1, 24, 24), form), np.uint8)
    for _ in range(150):
        corrupt = whole.copy()
        if rng.random() < 0.3:
            corrupt = corrupt[: rng.integers(0, len(corrupt))]
        for offset in rng.integers(0, max(1, len(corrupt)), rng.integers(1, 8)):
            if len(corrupt):
                corrupt[offset] = rng.integers(0, 256)
        try:
            pixels = decode(corrupt.tobytes())
        except ImageError:
            continue
        assert pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
def test_arrays_are_images_too(shape):
    pixels = decode(np.full(shape, 200, np.uint8))
    assert pixels.shape == (5, 6, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "array",
    [np.zeros((5, 6, 3)), np.zeros((0, 6, 3), np.uint8), np.zeros((5, 6, 2), np.uint8)],
)
def test_other_arrays_are_image_errors(array):
    with pytest.raises(ImageError, match="uint8"):
        decode(array)


def test_resize_is_antialiased_bicubic():
    image = noise(2, 90, 60)
    expected = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_square(image, 32), np.asarray(expected))
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing these would alias to black or white
    inside = resize_square(stripes, 32)[:, 1:-1].astype(int)
    assert np.abs(inside - 128).max() <= 1


def test_crops_keep_to_area_ratio_and_image():
    rng = np.random.default_rng(0)
    for _ in range(500):
        width, height = (int(v) for v in rng.integers(30, 300, 2))
        left, top, right, bottom = crop_box(width, height, (0.2, 1.0), rng)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        assert 0.7 < w / h < 1.4
        if max(width / height, height / width) < 1.3:
            assert w * h / (width * height) > 0.18


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_crops_of_narrow_images_are_never_empty(size):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for seed in range(20):
        crop = random_crop(image, 8, (0.2, 1.0), np.random.default_rng(seed))
        assert crop.shape == (8, 8, 3)


def test_crop_equals_its_box():
    image = noise(3, 100, 80)
    box = crop_box(100, 80, (0.3, 0.9), np.random.default_rng(5))
    expected = Image.fromarray(image).crop(box).resize((16, 16), Image.BICUBIC)
    crop = random_crop(image, 16, (0.3, 0.9), np.random.default_rng(5))
    # Weights of 16 bits instead of Pillow's 22.
    assert np.abs(crop.astype(int) - np.asarray(expected)).max() <= 2


def test_a_crop_of_the_whole_at_its_own_size_is_the_image():
    image = noise(3, 64, 64)
    crop = random_crop(image, 64, (1.0, 1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(crop, image)


def mosaic(shared_folder) -> Image.Image:
    """1280x960 of real photos, beside one another: sharp edges between them."""
    files = sorted((shared_folder / "data" / "photos").glob("*.jpg"))
    whole = Image.new("RGB", (1280, 960))
    for tile_index in range(20):
        with Image.open(files[tile_index % len(files)]) as photo:
            tile = photo.convert("RGB").resize((256, 256))
        whole.paste(tile, (tile_index % 5 * 256, tile_index // 5 * 256))
    return whole


@pytest.mark.realdata
@pytest.mark.parametrize("size", [32, 64, 128, 200, 256])
def test_crops_of_large_jpegs_are_those_of_the_whole(shared_folder, size):
    """Against Pillow's crop, then bicubic, of the whole image."""
    content = encode(mosaic(shared_folder), "JPEG", quality=92)
    with Image.open(io.BytesIO(content)) as image:
        whole = image.convert("RGB")
    for seed in range(5):
        found = random_crop(content, size, (0.2, 1.0), np.random.default_rng(seed))
        box = crop_box(1280, 960, (0.2, 1.0), np.random.default_rng(seed))
        expected = whole.crop(box).resize((size, size), Image.Resampling.BICUBIC)
        assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 1  # of 255
        # Below the margin the image is decoded whole.
        of_whole = random_crop(
            decode(content), size, (0.2, 1.0), np.random.default_rng(seed)
        )
        shorter = min(box[2] - box[0], box[3] - box[1])
        is_shrunk = shorter >= 2 * SHRINK_MARGIN * size
        assert np.array_equal(found, of_whole) != is_shrunk


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crops_of_large_jpegs_stand_upright(orientation, mode):
    tone = np.add.outer(np.linspace(0, 90, 300), np.linspace(0, 150, 401))
    image = Image.fromarray(tone.astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(image, "JPEG", quality=95, exif=exif)
    found = random_crop(content, 16, (0.5, 1.0), np.random.default_rng(1))
    whole = decode(content)
    expected = random_crop(whole, 16, (0.5, 1.0), np.random.default_rng(1))
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("width, height", [(301, 257), (1000, 333), (640, 480)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_decode_as_pillow_does(width, height, options):
    content = encode(rgb(4, width, height), "JPEG", quality=80, **options)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(decode(content), np.asarray(image))


def test_half_a_jpeg_is_an_image_error():
    content = encode(rgb(4, 800, 600), "JPEG")
    for size in (16, 256):
        with pytest.raises(ImageError, match="corrupt"):
            random_crop(
                content[: len(content) // 2], size, (0.2, 1), np.random.default_rng(0)
            )


@pytest.mark.realdata
def test_photos(shared_folder):
    files = sorted((shared_folder / "data" / "photos").glob("*.jpg"))
    assert files
    for file in files:
        assert min(decode(file.read_bytes()).shape[:2]) > 32
