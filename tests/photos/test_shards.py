"""Which members of a shard are photos, and to which sample the others belong."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_photos import encoded, keys, noise, write_tar

from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.sources import open_photos

PNG, JPEG = encoded(noise()), encoded(noise(), "JPEG")


def photos_of(tmp_path, *names, data=None):
    return open_photos(write_tar(tmp_path / "s.tar", {name: (data or {}).get(name, PNG) for name in names}))


def stems(photos):
    return [key.removeprefix("s.tar:") for key in keys(photos)]


@pytest.mark.parametrize(
    "names",
    [
        ("cat.0.jpg", "cat.1.jpg", "dog.0.jpg"),
        ("Shot 10.31.12.png", "Shot 10.31.13.png"),
        ("J.Smith.jpg", "J.Doe.jpg", "A.Smith.jpg"),
        ("photo.final.jpg", "other.final.JPG"),
        ("a.b.c.d.png",),
        ("cat.jpg", "cat.0.jpg", "cat.1.jpg"),
        ("v1.0/x.1.png", "v1.0/x.2.png"),
    ],
)
def test_photos_with_dots_in_their_names_are_photos(names, tmp_path):
    photos = photos_of(tmp_path, *names)
    assert stems(photos) == [name.rpartition(".")[0] for name in names]
    assert photos.remarks == () and {photo.image.size for photo in photos} == {(40, 30)}


def test_what_is_said_of_a_name_with_dots_goes_with_it(tmp_path):
    members = {"cat.0.jpg": PNG, "cat.0.cls": b"3", "cat.1.txt": b"one", "cat.1.jpg": PNG, "cat.json": b'{"size": 9}'}
    zero, one = photos_of(tmp_path, *members, data=members)
    assert (zero.label, zero.captions, zero.meta) == (3, (), {"size": 9})
    assert (one.label, one.captions, one.meta) == (None, ("one",), {"size": 9})


def test_fields_of_a_sample_are_no_photos_of_their_own(tmp_path):
    members = {
        "a.jpg": JPEG,
        "a.seg.png": PNG,
        "a.cls": b"1",
        "b.depth.png": PNG,
        "b.jpg": JPEG,
        "b.0.png": PNG,
        "b.npy": b"",
    }
    photos = photos_of(tmp_path, *members, data=members)
    assert stems(photos) == ["a", "b"] and photos[0].label == 1
    assert photos.passed_over.counts == {".seg.png": 1, ".depth.png": 1, ".0.png": 1, ".npy": 1}


def test_samples_of_several_pictures_none_of_which_is_the_photo_are_unreadable_with_the_reason(tmp_path):
    names = ("a.left.png", "a.right.png", "b.left.png", "b.right.png", "c.png")
    photos = photos_of(tmp_path, *names)
    assert stems(photos) == ["a", "b", "c"] and photos[2].image.size == (40, 30)
    with pytest.raises(
        UnreadablePhoto, match=r"several pictures \(left\.png, right\.png\) and none that is called KEY\.jpg"
    ):
        photos[1]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.png", "a.jpg")])
def test_of_a_photo_and_a_mask_in_one_sample_the_photo_is_taken_in_any_order(names, tmp_path):
    mask = encoded(Image.new("L", (7, 7)))
    members = {"a.jpg": JPEG, "a.png": mask, "a.cls": b"2", "b.jpg": JPEG, "b.png": mask}
    photos = photos_of(tmp_path, *names, "a.cls", "b.jpg", "b.png", data=members)
    assert [photo.image.size for photo in photos] == [(40, 30)] * 2 and photos[0].label == 2
    assert photos.passed_over.counts == {".png beside a .jpg of the same sample": 2}
    apart = photos_of(tmp_path, "a.png", "b.png", "a.jpg", "b.jpg", data=members)
    assert stems(apart) == ["a", "b"] and [photo.image.size for photo in apart] == [(40, 30)] * 2


def test_a_member_that_comes_again_at_once_replaces_the_first_as_in_any_tar_and_is_counted(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for seed in (1, 2):
            data = encoded(noise(seed=seed))
            member = tarfile.TarInfo("a.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    photos = open_photos(tmp_path / "s.tar")
    assert len(photos) == 1 and np.array_equal(np.asarray(photos[0].image), np.asarray(noise(seed=2)))
    assert photos.passed_over.counts == {"replaced by a later file of the same name": 1}


def test_links_and_hidden_members_and_those_of_systems_are_counted(tmp_path):
    path = write_tar(
        tmp_path / "s.tar", {"a.png": PNG, "._a.png": b"?", "__MACOSX/b.png": b"?", "@eaDir/a.png": PNG, "x.mp4": b""}
    )
    with tarfile.open(path, "a") as tar:
        for kind, name in (
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.SYMTYPE, "soft.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.png"
            tar.addfile(link)
    photos = open_photos(path)
    assert stems(photos) == ["a", "hard"]  # the second is the same file by another name
    assert np.array_equal(np.asarray(photos[0].image), np.asarray(photos[1].image))
    assert photos.passed_over.counts == {
        "hidden": 1, "in folders of the system": 2, ".mp4": 1, "links and what else is no regular file": 2,
    }  # fmt: skip


def test_shards_from_below_a_hidden_folder_keep_their_photos(tmp_path):
    assert stems(photos_of(tmp_path, "./a.png", ".cache/b.png")) == ["./a", ".cache/b"]
