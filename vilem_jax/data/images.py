"""Decode, crop and resize images on the host: bytes -> uint8 RGB."""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import cykooz_resizer as cr
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # by the header: larger ones are refused before decoding
# Pillow reads many more; some run other programs (EPS) or had security holes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
CROP_RATIO = (3 / 4, 4 / 3)  # width over height, as RandomResizedCrop
# A JPEG is decoded at 1/2, 1/4 or 1/8 only if the crop stays at least this many times
# larger than the size that it is resized to: its pixels then differ by less than 1 of
# 255, on average, from those of the whole image.
SHRINK_MARGIN = 2.5
_ORIENTATION = 0x0112  # the EXIF tag
# It would print each odd tag of a corrupt file; what matters is raised.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class ImageError(ValueError):
    """An image that cannot be decoded."""


def decode(encoded: bytes | np.ndarray) -> np.ndarray:
    """Any image as upright 8-bit RGB.

    It is rotated by its EXIF orientation, alpha is composed over white, 16 bits are
    scaled to 8, and of an animation the first frame is taken.

    Args:
      encoded: the bytes of a file, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4] (with alpha).

    Returns:
      uint8 [H, W, 3].

    Raises:
      ImageError: not an image, corrupt, truncated, or above `MAX_PIXELS`.
    """
    if isinstance(encoded, np.ndarray):
        return _from_array(encoded)
    with _opened(encoded) as image:
        return _pixels(image, encoded)[0]


def from_pillow(image: Image.Image) -> np.ndarray:
    """An opened Pillow image as `decode` returns it: uint8 [H, W, 3].

    Raises:
      ImageError: its file is corrupt or truncated, or it is above `MAX_PIXELS`.
    """
    _refuse_large(image)
    try:
        image.load()
        # Only now: Pillow turns some formats (TIFF) itself, and removes the tag.
        orientation = _orientation(image)
        return _upright(np.array(_to_rgb(image)), orientation)
    except Exception as error:  # as in `_opened`
        raise _corrupt(error) from error


def resize_square(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes any shape to [size, size, 3], as evaluation does.

    Args:
      image: uint8 [H, W, 3].
    """
    # Pillow's bicubic (a = -0.5) antialiases.
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(square)


def fit_short_side(
    encoded: bytes | np.ndarray, short_side: int, quality: int
) -> tuple[bytes, bool]:
    """An image no larger than needed: shorter side at most `short_side` pixels.

    A larger image is resized by antialiased bicubic, at the same aspect ratio, to a
    JPEG of `quality`, 1 to 100. Other files stay unchanged; an array becomes a PNG.

    Returns:
      the bytes of a file, and whether it was resized.

    Raises:
      ImageError: as `decode`.
    """
    pixels = decode(encoded)
    height, width = pixels.shape[:2]
    shorter = min(width, height)
    image, content = Image.fromarray(pixels), io.BytesIO()
    if shorter <= short_side:
        if isinstance(encoded, bytes):
            return encoded, False
        image.save(content, "PNG")
        return content.getvalue(), False
    size = [max(1, round(side * short_side / shorter)) for side in (width, height)]
    resized = image.resize(size, Image.Resampling.BICUBIC)
    resized.save(content, "JPEG", quality=quality)
    return content.getvalue(), True


def random_crop(
    encoded: bytes | np.ndarray,
    size: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """RandomResizedCrop: a random box, resized to [size, size, 3].

    The antialiased bicubic takes a quarter of Pillow's time, and a large JPEG is
    decoded at 1/2, 1/4 or 1/8 if the box allows it (`SHRINK_MARGIN`). On average the
    pixels of a photo are within 1 of 255 of Pillow's result from the whole image.

    Args:
      encoded: as for `decode`.
      scale: smallest and largest fraction of the area, in (0, 1].

    Raises:
      ImageError: as `decode`.
    """
    if isinstance(encoded, np.ndarray):
        pixels = _from_array(encoded)
        box = crop_box(pixels.shape[1], pixels.shape[0], scale, rng)
        return _crop(pixels, box, size)
    with _opened(encoded) as image:
        if _is_plain_jpeg(image):  # the header gives the upright size
            box = crop_box(*_upright_size(image), scale, rng)
            pixels, shrink = _pixels(image, encoded, _shrink(box, size))
        else:
            pixels, shrink = from_pillow(image), 1
            box = crop_box(pixels.shape[1], pixels.shape[0], scale, rng)
    return _crop(pixels, tuple(edge / shrink for edge in box), size)


def crop_box(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) in pixels, never empty.

    Area uniform in `scale`, ratio log-uniform in 3/4 to 4/3; if ten samples do not fit,
    the largest centred box of an allowed ratio, as in torchvision.
    """
    log_ratio = (math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]))
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(0, width - w + 1))
            top = int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    w = max(1, min(width, round(height * ratio)))
    h = max(1, min(height, round(width / ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """The image with its header read; raises any error of its bytes as ImageError."""
    # Pillow's decoders raise nearly every built-in exception on corrupt bytes
    # (SyntaxError, struct.error, IndexError, ...); its bomb warning may be an error.
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _refuse_large(image)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise ImageError(f"not an image of a known format ({known})") from None
    except Exception as error:
        raise _corrupt(error) from error


def _refuse_large(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{width}x{height} is above {MAX_PIXELS} pixels: make it smaller"
        )


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def _pixels(
    image: Image.Image, encoded: bytes, shrink: int = 1
) -> tuple[np.ndarray, int]:
    """Upright RGB, and by what its sides are divided: `shrink` (rounded up) or 1."""
    if _is_plain_jpeg(image):
        # The library that Pillow uses, and the same pixels in half the time. Its errors
        # do not say what is corrupt: Pillow then names it, or decodes what it can.
        width, height = (-(-side // shrink) for side in image.size)
        least = (width, height) if shrink > 1 else (0, 0)  # 0: the full size
        with suppress(ValueError):
            pixels = simplejpeg.decode_jpeg(
                encoded, min_width=least[0], min_height=least[1]
            )
            if pixels.shape[:2] == (height, width):
                return _upright(pixels, _orientation(image)), shrink
    return from_pillow(image), 1


def _shrink(box: tuple[int, int, int, int], size: int) -> int:
    """The largest of 8, 4, 2 and 1 that leaves `box` large enough for `size`."""
    shorter = min(box[2] - box[0], box[3] - box[1])
    return next((n for n in (8, 4, 2) if shorter >= n * SHRINK_MARGIN * size), 1)


def _crop(pixels: np.ndarray, box: tuple[float, ...], size: int) -> np.ndarray:
    """The pixels inside `box`, resized to [size, size, 3]."""
    left, top = math.floor(box[0]), math.floor(box[1])
    part = pixels[top : math.ceil(box[3]), left : math.ceil(box[2])]
    height, width = part.shape[:2]
    source = cr.ImageData(width, height, cr.PixelType.U8x3, part.tobytes())
    target = cr.ImageData(size, size, cr.PixelType.U8x3)
    inner = cr.CropBox(box[0] - left, box[1] - top, box[2] - box[0], box[3] - box[1])
    # a = -0.5, as Pillow's bicubic.
    bicubic = cr.ResizeAlg.convolution(cr.FilterType.catmull_rom)
    cr.Resizer().resize(source, target, cr.ResizeOptions(bicubic, crop_box=inner))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)


def _corrupt(error: Exception) -> ImageError:
    return ImageError(f"corrupt ({type(error).__name__}: {error})")


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    is_image = array.ndim == 3 and array.shape[-1] in (1, 3, 4) and array.size > 0
    if array.dtype != np.uint8 or not is_image:
        raise ImageError(
            f"an image must be uint8 [H, W, 3], not {array.dtype} {array.shape}"
        )
    if array.shape[-1] == 4:
        return np.array(_to_rgb(Image.fromarray(array)))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; above 4, width and height are swapped."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # corrupt EXIF: the pixels are still intact
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` [H, W, 3] as `orientation` asks."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La"):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey of 16 or 32 bits, or float, to 0-255.

    32-bit and float images do not define white: it is the smallest of 1 (float only),
    255 and 65535 that is no less than their values.
    """
    if values.dtype == np.uint16:
        white = 65535.0
    else:
        whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        values = np.nan_to_num(values.astype(np.float64))
        white = next((w for w in whites if values.max() <= w), values.max())
    return np.clip(np.round(values * (255.0 / white)), 0, 255).astype(np.uint8)
