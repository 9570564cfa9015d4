"""Photo sources, tar shards and decoding."""

import errno
import io
import json
import os
import pickle
import re
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_photos import encoded, keys, noise, write_folder, write_shard, write_tar

from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.folders import NoLabels
from sfvlm.photos.sources import named, names_hash, open_photos
from sfvlm.util.errors import MachineFault


def decoded(path: Path, **options) -> np.ndarray:
    image = open_photos(path, **options)[0].image
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "PA"])
def test_every_colour_mode_decodes_to_the_same_grey(mode, tmp_path):
    grey = Image.new("RGB", (8, 6), (255, 255, 255)).convert("RGBA" if "A" in mode else "RGB")
    image = grey.convert("P").convert("PA") if mode == "PA" else grey.convert(mode)
    kind = {"CMYK": "TIFF", "PA": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    path = tmp_path / f"photo.{kind.lower()}"
    image.save(path)
    assert np.array_equal(decoded(path), np.full((6, 8, 3), 255))


def test_transparency_is_composited_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (4, 4), (0, 128)).save(tmp_path / "half.png")
    palette = Image.new("RGB", (4, 4), "red").convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "keyed.png", transparency=(9, 8, 7))
    assert decoded(tmp_path / "clear.png").min() == 255
    assert set(decoded(tmp_path / "half.png").ravel()) == {127}
    assert decoded(tmp_path / "palette.png").min() == 255
    assert decoded(tmp_path / "keyed.png").min() == 255


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_rather_than_clipped(kind, tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{kind}")
    assert decoded(tmp_path / f"deep.{kind}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_integers_and_floats_are_scaled_to_their_white(tmp_path):
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(tmp_path / "integer.tif")
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "unit.tif")
    Image.fromarray(np.array([[-5, 100, 255]], dtype=np.float32)).save(tmp_path / "byte.tif")
    assert decoded(tmp_path / "integer.tif")[0, :, 0].tolist() == [0, 255]
    assert decoded(tmp_path / "unit.tif")[0, :, 0].tolist() == [0, 128, 255]
    assert decoded(tmp_path / "byte.tif")[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied_once(orientation, kind, tmp_path):
    stored = Image.new("RGB", (32, 16), "black")
    stored.paste("white", (0, 0, 16, 16))  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"photo.{kind}", exif=exif)
    pixels = decoded(tmp_path / f"photo.{kind}")[..., 0] > 128
    corners = {1: (0, 0), 3: (-1, -1), 6: (0, 0), 8: (-1, -1)}
    assert pixels.shape == ((16, 32) if orientation in (1, 3) else (32, 16))
    assert pixels[corners[orientation]] and pixels.mean() == pytest.approx(0.5, abs=0.1)


def test_broken_exif_does_not_cost_the_photo(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded(noise(), "JPEG", exif=b"Exif\0\0garbage" * 9))
    assert decoded(tmp_path / "photo.jpg").shape == (30, 40, 3)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_its_first_frame(kind, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"moving.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    assert decoded(path)[0, 0].tolist() == [255, 0, 0]


def test_unreadable_files_say_why(tmp_path):
    jpeg = encoded(noise(200, 200), "JPEG")
    png = encoded(noise(200, 200))
    files = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"<html>404</html>", "not a JPEG"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "header.png": (png[:20], "header"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
    }
    for name, (data, reason) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadablePhoto, match=reason) as caught:
            open_photos(tmp_path / name)[0]
        assert caught.value.key == f"{tmp_path.name}/{name}"
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.key, again.reason) == (caught.value.key, caught.value.reason)


def test_a_file_gone_since_indexing_is_unreadable(tmp_path):
    photos = open_photos(write_folder(tmp_path / "photos", "a.png"))
    (tmp_path / "photos" / "a.png").unlink()
    with pytest.raises(UnreadablePhoto, match="No such file"):
        photos[0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_photo_of_too_many_pixels_is_refused_from_its_header(tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(noise()))
    for side, reason in ((11_000, "11000 x 11000 is more than"), (60_000, "exceeds limit")):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        png = bytearray(encoded(noise()))
        png[16:29] = header  # only the header lies: decoding would fail with another reason
        png[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        (tmp_path / "bomb.png").write_bytes(png)
        with pytest.raises(UnreadablePhoto, match=reason):
            open_photos(tmp_path / "bomb.png")[0]
    with pytest.raises(UnreadablePhoto, match="40 x 30 is more than max_pixels=1199"):
        open_photos(tmp_path / "photo.png", max_pixels=1199)[0]
    assert decoded(tmp_path / "photo.png", max_pixels=1200).shape == (30, 40, 3)


def test_a_decode_hint_shrinks_jpegs_but_never_below_it(tmp_path):
    noise(800, 640).save(tmp_path / "photo.jpg")
    assert decoded(tmp_path / "photo.jpg", decode_hint=150).shape == (160, 200, 3)
    assert decoded(tmp_path / "photo.jpg").shape == (640, 800, 3)


def test_a_folder_is_read_in_order_without_hidden_or_other_files(tmp_path):
    root = write_folder(tmp_path / "photos", "b.PNG", "a/z.jpeg", ".hidden.png", ".git/c.png")
    (root / "notes.txt").write_text("no photo")
    photos = open_photos(root)
    assert keys(photos) == ["photos/a/z.jpeg", "photos/b.PNG"]
    assert photos[0].label is None and photos.class_names is None
    assert [photo.key for photo in photos] == keys(photos)


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path):
    root = write_folder(tmp_path / "photos", "a/1.png", "b/2.png")
    (root / "a" / "to-b").symlink_to(root / "b")
    (root / "b" / "to-a").symlink_to(root / "a")
    for number in range(9):  # of each two paths to walk, at every depth
        (root / "b" / f"up{number}").symlink_to(tmp_path)
    names = {"a/1.png", "b/2.png", "a/to-b/2.png", "b/to-a/1.png"}
    assert {key.removeprefix("photos/") for key in keys(open_photos(root))} >= names
    assert len(open_photos(root)) < 99


def test_an_image_folder_labels_by_its_sorted_subfolders(tmp_path):
    root = write_folder(tmp_path / "set", "dog/1.png", "cat/deep/2.png", "eel/3.png", "loose.png")
    photos = open_photos(root, labelled=True)
    assert photos.class_names == ("cat", "dog", "eel")
    assert [photo.label for photo in photos] == [0, 1, 2]


def test_a_flat_folder_has_no_labels(tmp_path):
    with pytest.raises(ValueError, match="no photos in class subfolders"):
        open_photos(write_folder(tmp_path, "a.png"), labelled=True)


def test_sources_with_different_classes_are_refused(tmp_path):
    one = write_folder(tmp_path / "one", "cat/1.png")
    two = write_folder(tmp_path / "two", "dog/1.png")
    assert len(open_photos([one, two])) == 2
    with pytest.raises(ValueError, match="different classes"):
        open_photos([one, two], labelled=True)


def test_shards_open_by_path_glob_braces_and_mixture(tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"{number:03d}.tar", f"s{number}")
    write_folder(tmp_path / "photos", "a.png")
    every = ["000.tar:s0", "001.tar:s1", "002.tar:s2"]
    assert keys(open_photos(tmp_path / "001.tar")) == every[1:2]
    assert keys(open_photos(f"{tmp_path}/*.tar")) == every
    assert keys(open_photos(tmp_path)) == every
    assert keys(open_photos(f"{tmp_path}/{{000..002}}.tar")) == every
    assert keys(open_photos(f"{tmp_path}/{{002,000}}.tar")) == [every[2], every[0]]
    with pytest.raises(ValueError, match=r"{002\.\.000}.tar' counts down from 2 to 0: turn them round"):
        open_photos([f"{tmp_path}/{{002..000}}.tar", "scenes:1"])
    mixture = open_photos([f"{tmp_path}/002.tar::{tmp_path}/photos", tmp_path / "000.tar"])
    assert keys(mixture) == [every[2], "photos/a.png", every[0]]
    assert [photo.key for photo in mixture] == keys(mixture)


def test_a_sample_carries_label_captions_and_json(tmp_path):
    image = encoded(noise())
    members = {
        "a.jpg": encoded(noise(), "JPEG"),
        "a.cls": b"7\n",
        "b.json": json.dumps({"captions": ["x", "y"], "qa": [["q", "a"]]}).encode(),
        "b.webp": image,
        "c.PNG": image,
        "c.txt": "a café\nline\\nbreak\n".encode(),
        "d.json": b"{}",
        "e.png": image,
        "e.json": b'{"caption": "one"}',
    }
    a, b, c, e = open_photos(write_tar(tmp_path / "set.tar", members))
    assert (a.label, a.captions, a.meta) == (7, (), {})
    assert (b.captions, b.meta["qa"]) == (("x", "y"), [["q", "a"]])
    assert c.captions == ("a café", "line\nbreak")
    assert (e.key, e.captions) == ("set.tar:e", ("one",))


def test_the_members_of_a_sample_may_lie_apart_as_an_unsorted_tar_writes_them(tmp_path):
    image = encoded(noise())
    apart = {"a.png": image, "b.png": image, "a.cls": b"1", "b.cls": b"2", "a.txt": b"x"}
    a, b = open_photos(write_tar(tmp_path / "apart.tar", apart))
    assert [(a.label, a.captions), (b.label, b.captions)] == [(1, ("x",)), (2, ())]
    mac = {"._a.png": b"?", "a.png": image, "._a.cls": b"?", "a.cls": b"1"}
    assert [photo.label for photo in open_photos(write_tar(tmp_path / "mac.tar", mac))] == [1]


def test_a_key_that_comes_again_is_another_sample(tmp_path):
    one, two = encoded(noise(seed=1)), encoded(noise(seed=2))
    shard = tmp_path / "joined.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in (("a.cls", b"1"), ("a.png", one), ("b.png", one), ("a.cls", b"2"), ("a.png", two)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    first, _, again = open_photos(shard)
    assert (first.key, first.label, again.key, again.label) == ("joined.tar:a", 1, "joined.tar:a", 2)
    assert not np.array_equal(np.asarray(first.image), np.asarray(again.image))


def test_a_shard_holds_photos_of_every_format_that_a_folder_may(tmp_path):
    kinds = {"bmp": "BMP", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}
    members = {f"{suffix}.{suffix}": encoded(noise(), kind) for suffix, kind in kinds.items()}
    photos = open_photos(write_tar(tmp_path / "set.tar", members))
    assert keys(photos) == [f"set.tar:{suffix}" for suffix in kinds]
    assert {photo.image.size for photo in photos} == {(40, 30)}


def test_empty_captions_are_none(tmp_path):
    image = encoded(noise())
    members = {
        "a.png": image,
        "a.json": json.dumps({"captions": ["", "x", None, " "]}).encode(),
        "b.png": image,
        "b.json": json.dumps({"captions": None, "caption": "y"}).encode(),
        "c.png": image,
        "c.txt": "\ufeffz".encode(),
    }
    assert [photo.captions for photo in open_photos(write_tar(tmp_path / "set.tar", members))] == [
        ("x",),
        ("y",),
        ("z",),
    ]


def test_file_names_that_are_no_utf8_have_a_hash_and_can_be_named(tmp_path):
    root, name = write_folder(tmp_path / "photos", "a.png"), b"caf\xe9.png"
    try:
        (root / os.fsdecode(name)).write_bytes(encoded(noise()))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    photos, names = open_photos(root), tmp_path / "names.txt"
    names.write_bytes(name)
    assert len(names_hash(photos)) == 64 and named(photos, names) == {1}


def test_every_source_of_a_mixture_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path, "one/a.png", "two/b.png")
    assert keys(open_photos("~/one::~/two")) == ["one/a.png", "two/b.png"]


def test_files_that_describe_a_source_are_named_when_they_are_damaged(tmp_path):
    write_shard(tmp_path / "set" / "0.tar", "a")
    names, count = tmp_path / "set" / "classnames.txt", tmp_path / "set" / "nshards.txt"
    names.write_text("tench\nshark\n\n", encoding="utf-8-sig")  # as editors on Windows write it
    assert open_photos(tmp_path / "set").class_names == ("tench", "shark")
    for content, message in [
        (b"tench\n\nshark", r"Line 2 of .*classnames\.txt is blank"),
        (b"caf\xe9\n", r"classnames\.txt is no UTF-8 text"),
        (b"\n", r"classnames\.txt is empty"),
    ]:
        names.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_photos(tmp_path / "set")
    count.write_text("many")
    with pytest.raises(ValueError, match=r"nshards\.txt says 'many'; it must be the number of shards"):
        open_photos(tmp_path / "set")


def test_a_damaged_hugging_face_dataset_is_named(tmp_path):
    pytest.importorskip("datasets")
    for name, content, message in [
        ("cut", {"dataset_dict.json": "{"}, r"dataset_dict\.json is no JSON"),
        ("none", {"dataset_dict.json": "{}"}, r"dataset_dict\.json names no splits"),
        ("no list", {"dataset_dict.json": '{"splits": {"train": 1}}'}, r"dataset_dict\.json names no splits"),
        ("bare", {"dataset_info.json": "{}", "state.json": "{}"}, r"The Hugging Face dataset .*bare cannot be opened"),
    ]:
        (tmp_path / name).mkdir()
        for file, text in content.items():
            (tmp_path / name / file).write_text(text)
        with pytest.raises(ValueError, match=message):
            open_photos(tmp_path / name)


def test_a_sample_with_a_broken_annotation_says_so_and_keeps_its_photo(tmp_path):
    image = encoded(noise())
    members = {"a.png": image, "a.cls": b"tench", "b.png": image, "b.json": b"{", "c.png": image, "c.json": b"[1]"}
    members |= {"d.png": image, "d.txt": "Straße".encode("latin-1"), "d.json": b'{"qa": 1}'}
    members |= {"e.png": image, "e.cls": b"\xef\xbb\xbf3\r\n", "e.json": b'\xef\xbb\xbf{"caption": "x"}'}
    a, b, c, d, e = open_photos(write_tar(tmp_path / "set.tar", members))
    assert a.label is None and "'tench', which is no whole number" in a.unread["label"]
    assert b.meta == {} and "Expecting property name" in b.unread["meta"] and "captions" in b.unread
    assert c.meta == {} and "not an object" in c.unread["meta"]
    assert d.captions == () and d.meta == {"qa": 1} and "no UTF-8" in d.unread["captions"] and "meta" not in d.unread
    assert (e.label, e.captions, dict(e.unread)) == (3, ("x",), {})
    assert {photo.image.size for photo in (a, b, c, d, e)} == {(40, 30)}


def test_the_key_ends_at_the_first_dot_of_the_base_name(tmp_path):
    image = encoded(noise())
    members = {"v1.0/a.png": image, "v1.0/a.seg.png": b"", "v1.0/a.cls": b"3", "v1.0/.b.png": image}
    photos = open_photos(write_tar(tmp_path / "set.tar", members))
    assert keys(photos) == ["set.tar:v1.0/a"]
    assert photos[0].label == 3


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_index_agrees_with_the_standard_reader(kind, tmp_path):
    image = encoded(noise())
    names = ["a.png", "folder/" * 20 + "b.png", "ümlaut.png"]
    if kind != tarfile.USTAR_FORMAT:
        names.append("long/" * 60 + "c.png")
    path = write_tar(tmp_path / "set.tar", dict.fromkeys(names, image), kind)
    with tarfile.open(path, "a", format=kind) as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
        tar.add(tmp_path, "directory", recursive=False)
        tar.addfile(tarfile.TarInfo("none.png"))
    photos = open_photos(path)
    assert keys(photos) == [f"set.tar:{name.removesuffix('.png')}" for name in [*names, "none.png"]]
    assert all(photos[index].image.size == (40, 30) for index in range(len(names)))


def test_a_truncated_shard_keeps_the_samples_before_the_break(tmp_path):
    whole = write_shard(tmp_path / "whole.tar", "a", "b", "c").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last = tar.getmembers()[-1]
    cuts = {"body": last.offset_data + 100, "header": last.offset + 100}
    expected = {"body": "body.tar:c", "header": f"header.tar:byte {last.offset}"}
    for name, size in cuts.items():
        (tmp_path / f"{name}.tar").write_bytes(whole[:size])
        photos = open_photos(tmp_path / f"{name}.tar")
        assert keys(photos) == [f"{name}.tar:a", f"{name}.tar:b", expected[name]]
        assert photos[1].image.size == (40, 30)
        with pytest.raises(UnreadablePhoto, match=f"{name}.tar"):
            photos[2]


def test_a_corrupt_header_is_a_break_and_no_silent_end(tmp_path):
    shard = write_shard(tmp_path / "set.tar", "a", "b", "c")
    with tarfile.open(shard) as tar:
        offset = tar.getmembers()[1].offset
    data = bytearray(shard.read_bytes())
    data[offset + 5] ^= 0xFF
    shard.write_bytes(data)
    assert keys(open_photos(shard)) == ["set.tar:a", f"set.tar:byte {offset}"]


@pytest.mark.parametrize("data", [b"\x1f\x8b compressed" * 99, b"short", b""])
def test_a_file_that_is_no_tar_is_refused(data, tmp_path):
    (tmp_path / "set.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.tar is not a plain tar archive"):
        open_photos(tmp_path / "set.tar")


def test_a_clip_benchmark_folder_opens_by_root_or_split(tmp_path):
    for number in range(11):
        write_shard(tmp_path / "test" / f"{number}.tar", f"s{number}")
    (tmp_path / "test" / "nshards.txt").write_text("11\n")
    (tmp_path / "classnames.txt").write_text("tench\nEnglish springer\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\n")
    for source in (tmp_path, tmp_path / "test"):
        photos = open_photos(source)
        assert keys(photos) == [f"{number}.tar:s{number}" for number in range(11)]
        assert photos.class_names == ("tench", "English springer")
        assert photos.templates == ("a photo of {c}.",)
    (tmp_path / "test" / "3.tar").unlink()
    with pytest.raises(ValueError, match=r"11 shards; 3\.tar missing"):
        open_photos(tmp_path)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_hugging_face_dataset_that_was_saved_to_give_tensors_keeps_its_labels(kind, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"image": [noise()], "label": [3]}, features=features)
    table.with_format(kind).save_to_disk(tmp_path / "set")
    assert open_photos(tmp_path / "set")[0].label == 3


def test_of_several_image_columns_the_one_called_image_is_taken_and_said(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(mask=datasets.Image(), image=datasets.Image(), left=datasets.Image())
    rows = {"mask": [Image.new("L", (3, 3))], "image": [noise()], "left": [noise()]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "three")
    photos = open_photos(tmp_path / "three")
    assert photos[0].image.size == (40, 30) and "mask" not in photos[0].meta
    assert "those of its column 'image', of mask, image, left" in photos.remarks[0]
    table.remove_columns("image").save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several columns of images \(mask, left\) and none called 'image': rename"):
        open_photos(tmp_path / "two")


def test_the_only_column_of_classes_is_the_label_whatever_it_is_called(tmp_path):
    datasets = pytest.importorskip("datasets")
    names, kind = ["cat", "dog"], datasets.ClassLabel
    rows = {"image": [noise()], "fine": [1], "coarse": [0]}
    features = datasets.Features(image=datasets.Image(), fine=kind(names=names), coarse=kind(names=["animal"]))
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "both")
    photos = open_photos(tmp_path / "both")
    assert (
        photos[0].label is None
        and "several columns of classes (fine, coarse) and none called 'label'" in photos.remarks[0]
    )
    table.remove_columns("coarse").save_to_disk(tmp_path / "one")
    photos = open_photos(tmp_path / "one")
    assert (photos[0].label, photos.class_names, photos.remarks) == (1, ("cat", "dog"), ())


def test_a_label_of_a_hugging_face_dataset_that_is_a_word_costs_only_those_who_need_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_dict({"image": [noise()], "label": ["cat"]}, features=features).save_to_disk(tmp_path / "set")
    photo = open_photos(tmp_path / "set")[0]
    assert photo.label is None and "'cat', which is no whole number" in photo.unread["label"]


def test_a_pipe_that_is_given_as_a_photo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UnreadablePhoto, match="no regular file"):
        open_photos(tmp_path / "a.jpg")[0]


def test_a_hugging_face_dataset_opens_from_disk(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        caption=datasets.List(datasets.Value("string")),
        source=datasets.Value("string"),
    )
    rows = {"image": [noise(), None], "label": [1, 0], "caption": [["x", "y"], []]}
    table = datasets.Dataset.from_dict({**rows, "source": ["web", "web"]}, features=features)
    datasets.DatasetDict(test=table).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=table, train=table).save_to_disk(tmp_path / "two")
    photos = pickle.loads(pickle.dumps(open_photos(tmp_path / "one")))
    photo = photos[0]
    assert (len(photos), photo.key, photo.label) == (2, "test:0", 1)
    assert (photo.captions, photo.meta["source"]) == (("x", "y"), "web")
    assert np.array_equal(np.asarray(photo.image), np.asarray(noise()))
    assert photos.class_names == ("cat", "dog")
    with pytest.raises(UnreadablePhoto, match="empty"):
        photos[1]
    with pytest.raises(ValueError, match=r"name one, such as .*two/test"):
        open_photos(tmp_path / "two")
    assert len(open_photos(tmp_path / "two" / "train")) == 2
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install sfvlm\[eval\]"):
        open_photos(tmp_path / "one")


def test_scenes_are_a_source_like_any_other(tmp_path):
    photos = open_photos(["scenes:2", "scenes:3:7", write_folder(tmp_path / "photos", "a.png")])
    assert keys(photos)[1:3] == ["scenes:0:1", "scenes:7:0"] and len(photos) == 6
    assert photos[0].image.mode == "RGB" and photos[0].captions and photos[0].meta
    assert isinstance(photos[0].label, int)


@pytest.mark.parametrize("source", ["absent", "*.jpg", "{0..3}.tar", "scenes:many", "notes.md"])
def test_a_source_that_is_none_is_named(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.md").write_text("no photo")
    with pytest.raises(ValueError, match=re.escape(source.replace("{0..3}", "0"))):
        open_photos(source)


def test_sources_without_photos_are_named(tmp_path):
    (tmp_path / "bare").mkdir()
    write_tar(tmp_path / "texts.tar", {"a.txt": b"no photo"})
    with pytest.raises(ValueError, match=r"No photos found in .*bare, .*texts\.tar"):
        open_photos([tmp_path / "bare", tmp_path / "texts.tar"])
    with pytest.raises(ValueError, match="empty list"):
        open_photos([])
    with pytest.raises(IndexError):
        open_photos(write_folder(tmp_path / "photos", "a.png"))[1]


def test_photos_pickle_while_in_use(tmp_path):
    photos = open_photos([write_shard(tmp_path / "set.tar", "a", "b"), "scenes:1"])
    first = photos[0]
    again = pickle.loads(pickle.dumps(photos))
    assert keys(again) == keys(photos)
    assert np.array_equal(np.asarray(again[0].image), np.asarray(first.image))


def test_photos_are_named_by_their_key_or_any_end_of_it(tmp_path):
    write_folder(tmp_path / "photos", "val/a.jpg", "val/b.jpg", "train/a.jpg")
    photos, names = open_photos([tmp_path / "photos", "scenes:3:5"]), tmp_path / "names.txt"

    def found(*lines):
        names.write_text("\n".join(lines), encoding="utf-8-sig")
        return {keys(photos)[index] for index in named(photos, names)}

    assert found("photos/val/a.jpg") == found("val/a.jpg") == found("val/a", "of-another-set") == {"photos/val/a.jpg"}
    assert found("a.jpg", "", "  b  ") == {"photos/val/a.jpg", "photos/train/a.jpg", "photos/val/b.jpg"}
    assert found("scenes:5:1") == {"scenes:5:1"}
    for line in ("1", "al/a.jpg", "photos"):
        with pytest.raises(ValueError, match="None of the 1 names"):
            found(line)
    with pytest.raises(ValueError, match="There is no file of names"):
        named(photos, tmp_path / "nowhere.txt")


def test_a_photo_in_a_shard_is_named_without_it(tmp_path):
    write_shard(tmp_path / "a.tar", "000001", "000002")
    names = tmp_path / "names.txt"
    for line in ("000002", "a.tar:000002"):
        names.write_text(line)
        assert named(open_photos(tmp_path / "a.tar"), names) == {1}


def test_held_out_names_are_found_however_their_path_is_written_and_the_others_are_counted(tmp_path):
    photos = open_photos(write_folder(tmp_path / "set", "val/a.png", "train/a.png", "val/b.png"))
    names = tmp_path / "names.txt"

    def found(text, encoding="utf-8"):
        names.write_bytes(text.encode(encoding))
        remarks: list[str] = []
        return {keys(photos)[index] for index in named(photos, names, remarks)}, " ".join(remarks)

    for written in ("./val/a.png", "val\\a.png", "/data/set/val/a.png", "val/a.PNG", "https://host/val/a.png?size=1"):
        assert found(written) == ({"set/val/a.png"}, "")
    assert found("b.png\n", "utf-16") == ({"set/val/b.png"}, "")
    kept, said = found("b.png\nnowhere.png\ntest/a.png\n")
    assert kept == {"set/val/b.png"}
    assert "2 of the 3 names" in said and "none of the photos', the first of them nowhere.png" in said


def test_a_source_that_comes_again_is_taken_once_and_one_inside_another_is_said(tmp_path):
    folder = write_folder(tmp_path / "set", "a/1.png", "b/2.png")
    (tmp_path / "link").symlink_to(folder)
    twice = open_photos([folder, tmp_path / "link", "scenes:2", "scenes:2"])
    assert len(twice) == 4 and sum("is given several times, and taken once" in each for each in twice.remarks) == 2
    assert any(
        "which is given too: what both hold counts twice" in each
        for each in open_photos([folder, folder / "a"]).remarks
    )
    assert open_photos([folder / "a", folder / "b"]).remarks == ()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_what_lies_in_the_machine_ends_in_a_sentence_and_costs_no_photo(number, tmp_path, monkeypatch):
    photos = open_photos(write_folder(tmp_path / "set", "a.png"))

    def fails(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("sfvlm.photos.sources.read_regular", fails)
    with pytest.raises(
        MachineFault, match=rf"set/a\.png cannot be read: {os.strerror(number)}\. This lies in the machine"
    ):
        photos[0]


def test_labels_without_a_photo_are_counted(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"./x.png": encoded(noise()), "x.cls": b"1", "y.png": encoded(noise())})
    assert "1 samples without a photo (such as x)" in open_photos(path).remarks[0]


def test_texts_of_a_sample_are_read_as_text_files_are(tmp_path):
    line = "one\u2028line"
    members = {"x.png": encoded(noise()), "x.txt": f"{line}\r\ntwo".encode("utf-16"), "x.cls": "3".encode("utf-16")}
    photo = open_photos(write_tar(tmp_path / "a.tar", members))[0]
    assert (photo.captions, photo.label, dict(photo.unread)) == ((line, "two"), 3, {})


def test_splits_beside_other_folders_are_no_classes_but_one_such_name_may_be(tmp_path):
    write_folder(tmp_path / "splits", "train/cat/1.png", "val/cat/1.png", "extra/1.png")
    with pytest.raises(NoLabels, match=r"are splits \(train, val\)"):
        open_photos(tmp_path / "splits", labelled=True)
    write_folder(tmp_path / "vehicles", "train/1.png", "bus/1.png")
    assert open_photos(tmp_path / "vehicles", labelled=True).class_names == ("bus", "train")


def test_a_label_of_minus_one_stands_for_no_class_where_classes_have_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": encoded(noise()), "path": None}] * 2, "label": [-1, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "rows")
    photos = open_photos(tmp_path / "rows")
    assert [photo.label for photo in photos] == [None, 1]
    assert photos.unread(0) == photos[0].unread == {"label": "its label is -1, which stands for an unknown class"}
    assert photos.unread(1) == photos[1].unread == {}


@pytest.mark.parametrize("name", ["nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt"])
def test_a_pipe_beside_shards_is_not_waited_for(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / "0.tar", "a", "b")
    os.mkfifo(tmp_path / name)
    assert len(open_photos(tmp_path)) == 2
