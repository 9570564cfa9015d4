"""Image files of every format and depth."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from tiny_photos import encoded, noise

from sfvlm.photos.decode import FORMATS, IMAGE_SUFFIXES, decode_image, is_marked, read_regular

# Formats that Pillow opens and we do not: which start programs, are no pictures of a scene, or hold pictures of other sciences.
NOT_TAKEN = {
    "BLP", "BUFR", "CUR", "DCX", "EPS", "FITS", "FLI", "FTEX", "GBR", "GRIB", "HDF5", "IM", "IMT", "IPTC", "MCIDAS", "MPEG",
    "MSP", "PCD", "PIXAR", "SPIDER", "WMF", "XBM", "XPM", "XVTHUMB",
}  # fmt: skip


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data, 10**8)
    assert image.mode == "RGB"
    return np.asarray(image)


def deep(values: np.ndarray, kind: str = "TIFF") -> bytes:
    return encoded(Image.fromarray(values), kind)


def test_every_format_of_pillow_is_taken_or_left_out_by_name():
    Image.init()
    assert {name for name in Image.OPEN if name not in ("HEIF", "AVIF")} == {*FORMATS, *NOT_TAKEN} - {"HEIF", "AVIF"}
    theirs = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert theirs <= {*IMAGE_SUFFIXES}


@pytest.mark.parametrize(
    "kind",
    ["JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "PNG", "BMP", "DIB", "GIF", "PPM", "DDS", "SGI", "PCX", "ICO", "TGA"],
)
def test_a_photo_of_every_format_decodes_to_what_pillow_saved(kind):
    if kind == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    plain = Image.new("RGB", (64, 64), (200, 40, 90))
    data = encoded(plain, kind)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(pixels(data).astype(int) - np.asarray(plain)).max() <= 8
    if kind in ("JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "PNG", "BMP", "GIF"):
        assert is_marked(data[:64])
    assert not is_marked(b"#!/bin/sh\necho" + data[:30])


def test_heic_is_read_with_its_package_and_named_without_it(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    stored = Image.new("RGB", (64, 48), "black")
    stored.paste("white", (0, 0, 32, 48))
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(stored).save(file, exif=exif.tobytes())
    assert is_marked(file.getvalue()[:64])
    found = pixels(file.getvalue())
    assert found.shape == (64, 48, 3) and found[0, 0, 0] > 128 > found[-1, 0, 0]


def test_heic_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    data = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(40)
    with pytest.raises(ValueError, match=r"HEIC.*pip install 'sfvlm\[heic\]'"):
        decode_image(data, 10**8)


def test_an_avif_that_this_pillow_cannot_read_says_what_to_install(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    for kinds in (b"avif" + bytes(4) + b"mif1", b"mif1" + bytes(4) + b"avif"):
        with pytest.raises(ValueError, match=r"AVIF.*Pillow 11\.3"):
            decode_image(struct.pack(">I", 20) + b"ftyp" + kinds + bytes(40), 10**8)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_values_of_fewer_bits_in_a_deeper_file_are_as_bright_as_in_their_own(bits, kind):
    white = 2**bits - 1
    ramp = np.linspace(0, white, 256).round().astype(np.uint16)[None]
    for values in (ramp, ramp.astype(np.int32)):
        if values.dtype == np.int32 and kind == "PNG":
            continue
        assert np.abs(pixels(deep(values, kind))[0, :, 0] - np.arange(256)).max() <= 1


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_both_byte_orders_are_read(order):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    head = {"<u2": b"II*\0" + struct.pack("<I", 8), ">u2": b"MM\0*" + struct.pack(">I", 8)}[order]
    tags = [
        (256, 4, 4),
        (257, 4, 1),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 134),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, 8),
    ]
    end = order[0]
    entries = b""
    for tag, kind, value in tags:
        entries += struct.pack(f"{end}HHI", tag, kind, 1) + (
            struct.pack(f"{end}HH", value, 0) if kind == 3 else struct.pack(f"{end}I", value)
        )
    data = head + struct.pack(f"{end}H", len(tags)) + entries + bytes(4)
    data = data.ljust(134, b"\0") + values.astype(order).tobytes()
    assert pixels(data)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floats_are_scaled_to_the_white_that_they_have_and_marks_for_no_value_are_none():
    for white in (1, 255, 65535):
        values = np.array([[0, 0.5 * white, white]], np.float32)
        assert pixels(deep(values))[0, :, 0].tolist() == [0, 128, 255]
    for mark in (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38):
        found = pixels(deep(np.array([[mark, 0.5, 1]], np.float32)))[0, :, 0].tolist()
        assert found == [255 if mark > 0 else 0, 128, 255]


@pytest.mark.parametrize("values", [np.float32([[-1, 0, 1]]), np.int32([[-1024, 0, 3071]])])
def test_values_that_are_no_brightness_are_refused(values):
    with pytest.raises(ValueError, match="which are no brightness: save it with 8 bits"):
        pixels(deep(values))


def png_of_sixteen_bits(values: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a PNG, which Pillow reads but does not write."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_twelve_bits_are_refused_where_only_their_upper_eight_are_read():
    values = np.random.default_rng(0).integers(0, 65536, (4, 6, 3)).astype(np.uint16)
    assert np.array_equal(pixels(png_of_sixteen_bits(values)), (values >> 8).astype(np.uint8))
    with pytest.raises(ValueError, match=r"no value above 4095.*save it with 8 bits a colour"):
        pixels(png_of_sixteen_bits(values >> 4))


def test_lab_is_converted_as_its_profile_says():
    image = noise(16, 12)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    stored = ImageCms.profileToProfile(Image.new("RGB", (8, 8), (200, 40, 90)), srgb, lab, outputMode="LAB")
    assert stored is not None and image.mode == "RGB"
    assert np.abs(pixels(encoded(stored, "TIFF")).astype(int) - (200, 40, 90)).max() <= 3


def test_premultiplied_colours_are_taken_back_before_they_lie_on_white():
    straight = Image.new("RGBA", (4, 4), (200, 40, 90, 128))
    tiff = encoded(straight, "TIFF")
    assert np.abs(pixels(tiff)[0, 0].astype(int) - (227, 147, 172)).max() <= 2


def test_a_jpeg_of_printing_colours_is_not_inverted():
    stored = Image.new("RGB", (16, 16), (250, 60, 30)).convert("CMYK")
    assert np.abs(pixels(encoded(stored, "JPEG", quality=95))[0, 0].astype(int) - (250, 60, 30)).max() <= 6


def test_a_pipe_is_no_photo_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="no regular file"):
        read_regular(tmp_path / "a.jpg")


def test_a_dark_photo_stays_dark_where_its_file_shows_that_sixteen_bits_are_its_white():
    grey = np.arange(0, 16, dtype=np.uint16).reshape(4, 4)
    for step in (256, 257):
        data = encoded(Image.fromarray(grey * step))
        assert np.array_equal(np.asarray(decode_image(data, 1000))[..., 0], grey)
    pgm = b"P5 2 1 65535\n" + bytes([1, 3, 8, 5])
    assert np.asarray(decode_image(pgm, 1000))[0, :, 0].tolist() == [1, 8]
    measured = encoded(Image.fromarray(np.arange(0, 4095, 273, dtype=np.uint16)[None]))
    assert np.asarray(decode_image(measured, 1000)).max() > 230  # of 12 bits
