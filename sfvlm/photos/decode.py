"""From the bytes of an image file to an upright RGB photo."""

import contextlib
import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, features

# Formats are named because Pillow also opens some, such as EPS, by starting another program. The first are the usual ones: of
# two pictures of one sample, the one whose suffix comes first here is the photo. TGA, which begins with no mark of its own,
# comes last: Pillow tries them in this order.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "WEBP": (".webp",),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "TIFF": (".tif", ".tiff"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "PCX": (".pcx",),
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MARKED = (
    "JPEG",
    "WEBP",
    "AVIF",
    "JPEG2000",
    "TIFF",
    "PNG",
    "BMP",
    "GIF",
)  # told apart from other files by their first bytes
# ISO 14496-12 files name their kind in bytes 8 to 12.
HEIF_KINDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_KINDS = (b"avif", b"avis")
# Brightest values of 8, 10, 12 and 16 bits: cameras and scanners store what they measured in files of 16 or 32 bits.
WHITES = (255.0, 1023.0, 4095.0, 65535.0)


@dataclass(frozen=True)
class Photo:
    """One decoded photo and what its source says of it."""

    image: Image.Image  # mode RGB, upright
    key: str  # stable: "folder/file.jpg", "shard.tar:key", "dataset:row" or "scenes:seed:index"
    label: int | None = None
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    unread: Mapping[str, str] = field(
        default_factory=dict
    )  # why "label", "captions" or "meta" cannot be read, where it is there


class UnreadablePhoto(ValueError):
    """A photo that is in the index but cannot be had."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)  # both, so that the exception survives pickling
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def read_regular(path: Path) -> bytes:
    """The content of a file; ValueError for a pipe, socket or device, which may give nothing for ever."""
    # Without waiting: an open pipe would, and what is at a path may change at any time.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file, but a pipe, a socket or a device")
        return file.read()


def is_marked(head: bytes) -> bool:
    """Whether the first 16 bytes or more of a file are those of a photo, whatever it is called."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_KINDS:
        return True
    accepts = (Image.OPEN[name][1] for name in _known(MARKED))
    return any(accept is not None and accept(head[:16]) is True for accept in accepts)


def _known(names: tuple[str, ...]) -> list[str]:
    """Those of these formats that this Pillow has a reader for."""
    Image.init()
    return [name for name in names if name in Image.OPEN]


def decode_image(data: bytes, max_pixels: int, decode_hint: int | None = None) -> Image.Image:
    """Encoded bytes to an upright RGB image: first frame, transparency on white, deep ones scaled to 8 bits.

    `decode_hint` lets a JPEG decode at 1/2, 1/4 or 1/8 of its size, while both sides stay at least
    that long. Raises ValueError with the reason.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        image = _open(data)
    except Image.UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG, WEBP, TIFF, GIF, HEIC, AVIF or other known image") from None
    except ImportError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # on corrupt bytes Pillow's readers raise nearly any exception
        raise ValueError(f"its header cannot be read: {error}") from error
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} is more than max_pixels={max_pixels}")
    halved = _is_halved(image)
    try:
        if decode_hint is not None:
            image.draft("RGB", (decode_hint, decode_hint))
        image.load()
        _turn_upright(image)
        rgb = to_rgb(image)
    except Exception as error:
        raise ValueError(f"it cannot be decoded: {error}") from error
    if halved and max(high for _, high in rgb.getextrema()) <= WHITES[2] // 256:  # pyright: ignore[reportGeneralTypeIssues]
        raise ValueError(
            "its colours have 16 bits and no value above 4095, and Pillow reads the upper 8 bits alone, which leaves it "
            "black: save it with 8 bits a colour"
        )
    return rgb


def _open(data: bytes) -> Image.Image:
    """The image before its pixels; ImportError where a package is missing that this format needs."""
    kind = data[8:12] if data[4:8] == b"ftyp" else b""
    is_avif = kind in AVIF_KINDS or (kind in HEIF_KINDS and b"avif" in data[16:64])  # it may call itself mif1 first
    if kind in HEIF_KINDS and not is_avif:
        try:
            import pillow_heif  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("it is a HEIC photo, which needs pillow-heif: pip install 'sfvlm[heic]'") from error
        # Opened by itself, because registering it would change what Pillow opens in the whole process.
        return pillow_heif.HeifImageFile(BytesIO(data))
    names = _known(tuple(FORMATS))
    if is_avif and not ("AVIF" in names and _built_with("avif")):
        raise ImportError("it is an AVIF photo, which needs Pillow 11.3 or newer: pip install -U pillow")
    return Image.open(BytesIO(data), formats=names)


def _built_with(name: str) -> bool:
    """Whether this Pillow was built with a library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older ones do not know every name
        return bool(features.check(name))


def _is_halved(image: Image.Image) -> bool:
    """Whether several channels of 16 bits will be read as their upper 8 bits, which is all that Pillow has modes for."""
    if len(image.getbands()) == 1:
        return False
    return any(";16" in str(part) for tile in getattr(image, "tile", ()) for part in tile)


def _turn_upright(image: Image.Image) -> None:
    # Broken EXIF is common, may raise anything, and says nothing against the pixels.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, more than 8 bits scaled."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image.getchannel("A"))
        return background
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB") or image
    return image.convert("RGB")


def _grey_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales deep greyscale, which Pillow's own conversion would clip to white.

    White is the greatest value of the fewest bits that hold the brightest one; floats may go from 0 to 1 too. What is beyond
    all of these is scaled by its own maximum. Where the file shows that its values fill 16 bits, as viewers take them to, a dark
    photo stays dark: PGM says its white, and values that are all multiples of 256 or 257 were 8 bits before. Other photos of 16
    bits none of whose values is above 4095 are taken for what cameras and scanners measured with 12 or 10, which is what such
    files mostly hold; the rare dark one among them is brightened.

    Raises:
        ValueError: The values go so far below 0 that they are no brightness, such as those of a scan or a normalised picture.
    """
    values = np.asarray(image, dtype=np.float32)
    valid = np.abs(values) < 1e30  # no number, or the marks that stand for none
    brightest, darkest = (float(extreme(values, where=valid, initial=0)) for extreme in (np.max, np.min))
    whites = (1.0, WHITES[0], WHITES[-1]) if image.mode == "F" else _stored_white(image, values) or WHITES
    white = next((value for value in whites if brightest <= value), brightest)
    if darkest < -white / 10:
        raise ValueError(
            f"its values go from {darkest:g} to {brightest:g}, which are no brightness: save it with 8 bits"
        )
    values = np.where(valid, values, np.where(values > 0, white, 0))
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))


def _stored_white(image: Image.Image, values: np.ndarray) -> tuple[float, ...]:
    """The white that a file tells: a TIFF by its bits, where that are neither 8, 16 nor 32; others that it is that of 16 bits."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # BitsPerSample
    if 8 < bits < 16:
        return (2.0**bits - 1,)
    if image.format == "PPM":  # Pillow has scaled it to 16 bits
        return WHITES[-1:]
    # Of 8 bits, whichever way these were made 16; more than black and one grey, which could be multiples by chance.
    were_eight = any(not (values % step).any() for step in (256, 257)) and len(np.unique(values)) > 2
    return WHITES[-1:] if were_eight and values.max(initial=0) <= WHITES[-1] else ()
