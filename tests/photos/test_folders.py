"""What below a folder is a photo or a class, and what is passed over."""

import os
import socket

import pytest
from tiny_photos import encoded, keys, noise, write_folder, write_shard, write_tar

from sfvlm.evaluate.zeroshot import open_evaluation_photos
from sfvlm.photos.folders import NoLabels, PassedOver
from sfvlm.photos.sources import open_photos


def test_what_is_no_photo_is_counted_by_kind_with_an_example(tmp_path):
    root = write_folder(
        tmp_path / "set", "a.png", "b.JFIF", "c.jpe", ".hidden.png", "._a.png", "Thumbs.db", "x.mp4", "y.MP4"
    )
    (root / "README").write_text("text")
    (root / "lost.jpg").symlink_to("nowhere.jpg")
    (root / "itself.jpg").symlink_to("itself.jpg")
    write_folder(
        root, ".git/d.png", "@eaDir/a.png", "__MACOSX/._a.png", "sub/.ipynb_checkpoints/a.png", "old.jpg/e.png"
    )
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(root)  # the path of a socket may be short alone
        listening.bind("socket.png")
        os.chdir(here)
    photos = open_photos(root)
    assert keys(photos) == [f"set/{name}" for name in ("a.png", "b.JFIF", "c.jpe", "old.jpg/e.png")]
    assert photos.passed_over.counts == {
        "hidden": 2, ".db": 1, ".mp4": 2, "without a suffix": 1, "links that lead nowhere": 1, "files that cannot be opened": 1,
        "hidden folders and those of the system": 4, "pipes, sockets and devices": 2,
    }  # fmt: skip
    (said,) = photos.remarks
    assert "2 .mp4 (such as x.mp4)" in said and "2 pipes, sockets and devices (such as pipe.jpg)" in said


def test_nothing_is_said_where_nothing_is_passed_over(tmp_path):
    assert open_photos(write_folder(tmp_path / "set", "a.png")).remarks == ()
    assert PassedOver().sentence() == ""


def test_many_kinds_are_one_line(tmp_path):
    passed = PassedOver()
    for number in range(40):
        passed.add(f".x{number}", f"a.x{number}")
    assert "34 of 34 other kinds" in passed.sentence() and "\n" not in passed.sentence()


def test_a_file_without_a_suffix_is_a_photo_where_it_begins_like_one(tmp_path):
    (tmp_path / "set").mkdir()
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        (tmp_path / "set" / kind).write_bytes(encoded(noise(), kind))
    (tmp_path / "set" / "LICENSE").write_text("GIF or PNG")
    photos = open_photos(tmp_path / "set")
    assert len(photos) == 6 and {photo.image.size for photo in photos} == {(40, 30)}
    shard = write_tar(tmp_path / "s.tar", {"one": encoded(noise(), "JPEG"), "one.cls": b"4", "two": b"no photo"})
    assert [(photo.key, photo.label) for photo in open_photos(shard)] == [("s.tar:one", 4)]


def test_photos_beside_shards_are_refused_or_counted(tmp_path):
    write_folder(tmp_path / "flat", "a.png")
    write_shard(tmp_path / "flat" / "stray.tar", "x", "y")
    with pytest.raises(
        ValueError, match=r"flat holds shards \(stray\.tar\) and 1 photos beside them \(a\.png\).*/\*\.tar"
    ):
        open_photos(tmp_path / "flat")
    assert len(open_photos(f"{tmp_path}/flat/*.tar")) == 2
    write_folder(tmp_path / "classes", "cat/1.png", "dog/2.png")
    write_tar(tmp_path / "classes" / "code.tar", {"a.py": b""})
    with pytest.raises(ValueError, match=r"holds shards \(code\.tar\) and 2 photos"):
        open_evaluation_photos(str(tmp_path / "classes"))
    write_folder(tmp_path / "set", "thumbnails/a.png")
    write_shard(tmp_path / "set" / "0.tar", "x")
    assert "1 photos in folders beside the shards" in open_photos(tmp_path / "set").remarks[0]


def test_a_folder_called_like_a_shard_is_none(tmp_path):
    write_folder(tmp_path / "set", "a.png", "more.tar/b.png")
    assert keys(open_photos(tmp_path / "set")) == ["set/a.png", "set/more.tar/b.png"]


def test_where_there_is_no_photo_it_is_said_what_there_is(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (root / "photos.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"No photos found in .*set\. Passed over.*1 \.zip \(such as photos\.zip\)"):
        open_photos(root)


def test_folders_without_photos_are_no_classes_and_named(tmp_path):
    root = write_folder(tmp_path / "set", "cat/1.png", "dog/2.png", "@eaDir/cat/1.png", ".cache/3.png")
    (root / "empty").mkdir()
    (root / "lists").mkdir()
    (root / "lists" / "names.txt").write_text("cat")
    (root / "__MACOSX").mkdir()
    photos = open_evaluation_photos(str(root))
    assert photos.class_names == ("cat", "dog") and [photo.label for photo in photos] == [0, 1]
    assert any("that hold no photo are no classes: empty, lists." in remark for remark in photos.remarks)


def test_class_folders_called_by_numbers_are_in_the_order_of_these(tmp_path):
    root = write_folder(tmp_path / "set", *(f"{number}/a.png" for number in range(12)))
    assert open_evaluation_photos(str(root)).class_names == tuple(map(str, range(12)))
    assert {photo.key: photo.label for photo in open_evaluation_photos(str(root))}["set/10/a.png"] == 10
    padded = write_folder(tmp_path / "padded", "000/a.png", "7/a.png", "011/a.png")
    assert open_evaluation_photos(str(padded)).class_names == ("000", "7", "011")
    write_folder(padded, "07/a.png")
    with pytest.raises(ValueError, match=r"class folders 07 and 7 of .*padded are the same number"):
        open_evaluation_photos(str(padded))


@pytest.mark.parametrize(
    "names", [("train/a.png", "val/b.png"), ("train/cat/a.png", "test/cat/b.png"), ("val2017/a.png",)]
)
def test_splits_are_no_classes(names, tmp_path):
    root = write_folder(tmp_path / "set", *names)
    with pytest.raises(NoLabels, match="are splits"):
        open_photos(root, labelled=True)
    photos = open_evaluation_photos(str(root))
    assert photos.class_names is None and {photo.label for photo in photos} == {None}
    assert "and no classes, so that its photos have no labels: for those of one, give it, such as" in photos.remarks[0]


def test_why_photos_have_no_labels_is_said(tmp_path):
    root = write_folder(tmp_path / "set", "cat/1.png", "dog/2.png", "loose.png")
    assert "1 of the 3 photos of" in open_evaluation_photos(str(root)).remarks[0]
    other = write_folder(tmp_path / "other", "eel/1.png")
    (root / "loose.png").unlink()
    mixture = open_evaluation_photos(f"{root}::{other}")
    assert mixture.class_names is None and "name different classes" in mixture.remarks[0]


def test_sources_that_do_not_name_their_classes_beside_one_that_does_are_said(tmp_path):
    root = write_folder(tmp_path / "set", "cat/1.png", "dog/2.png")
    shard = write_tar(tmp_path / "s.tar", {"a.png": encoded(noise()), "a.cls": b"1"})
    photos = open_evaluation_photos(f"{root}::{shard}")
    assert photos.class_names == ("cat", "dog") and [photo.label for photo in photos] == [0, 1, 1]
    assert "Of the 2 sources 1 name their classes" in photos.remarks[0]


def test_a_pipe_called_like_a_shard_is_counted(tmp_path):
    write_shard(tmp_path / "set" / "0.tar", "x")
    os.mkfifo(tmp_path / "set" / "1.tar")
    assert open_photos(tmp_path / "set").passed_over.counts == {"pipes, sockets and devices": 1}
