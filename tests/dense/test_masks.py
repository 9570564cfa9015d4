"""Photos with masks: which is which in every kind of source, what a mask says, and what is left out and said."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_masks import masked, masked_folder, masked_shard
from tiny_photos import encoded, noise, write_tar

from sfvlm.dense.masks import Misfit, checked, open_masked, read_mask, upright_size
from sfvlm.dense.metrics import IGNORED
from sfvlm.photos.sources import open_photos


def masks_of(source: str | Path, **options) -> list[np.ndarray]:
    photos = open_masked(source, **options)
    return [photos[index].mask for index in range(len(photos))]


def expected(count: int) -> list[np.ndarray]:
    return [np.asarray(masked(seed)[1]) for seed in range(count)]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_in_a_shard_the_png_is_the_mask_of_the_jpg(tmp_path: Path):
    shard = masked_shard(tmp_path / "a.tar")
    assert_same(masks_of(shard), expected(8))
    assert open_masked(shard)[0].key == "a.tar:000"


def test_in_a_shard_a_mask_may_be_named_so(tmp_path: Path):
    photo, mask = masked(0)
    shard = write_tar(tmp_path / "a.tar", {"x.png": encoded(photo), "x.mask.png": encoded(mask)})
    assert_same(masks_of(shard), expected(1))


@pytest.mark.parametrize(
    ("photos", "masks"),
    [
        ("images", "masks"),
        ("images/training", "annotations/training"),
        ("train", "trainannot"),
        ("JPEGImages", "SegmentationClass"),
    ],
)
def test_in_folders_photos_and_masks_lie_beside_each_other(tmp_path: Path, photos: str, masks: str):
    assert_same(masks_of(masked_folder(tmp_path, photos, masks)), expected(4))


@pytest.mark.parametrize(
    ("photos", "masks"), [("images/training", "annotations/training"), ("images", "masks"), ("train", "trainannot")]
)
def test_the_masks_of_a_folder_of_photos_lie_where_data_sets_put_them(tmp_path: Path, photos: str, masks: str):
    assert_same(masks_of(masked_folder(tmp_path, photos, masks) / photos), expected(4))


def test_photos_of_one_shard_and_masks_of_another_go_together_by_key(tmp_path: Path):
    photos = {f"{seed}.jpg": encoded(masked(seed)[0], "JPEG") for seed in range(3)}
    masks = {f"{seed}.png": encoded(masked(seed)[1]) for seed in (2, 0, 7)}
    write_tar(tmp_path / "photos.tar", photos)
    write_tar(tmp_path / "masks.tar", masks)
    found = open_masked(f"{tmp_path}/photos.tar::{tmp_path}/masks.tar")
    assert [found.key(index) for index in range(len(found))] == ["photos.tar:0", "photos.tar:2"]
    assert_same([found[index].mask for index in range(2)], [expected(3)[0], expected(3)[2]])
    assert found.passed_over.counts["photos without a mask"] == 1


def test_a_dataset_on_disk_has_a_column_of_masks(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = {name: [masked(seed)[place] for seed in range(3)] for place, name in enumerate(("image", "annotation"))}
    features = datasets.Features({name: datasets.Image() for name in rows})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "rows")
    assert_same(masks_of(tmp_path / "rows"), expected(3))


def test_photos_of_masks_are_no_photos_to_learn_from(tmp_path: Path):
    """A bootstrap that is given a data set of segmentation sees its photos alone."""
    folder = open_photos(masked_folder(tmp_path / "set"))
    assert [folder.key(index) for index in range(len(folder))] == [f"set/images/{seed:03d}.png" for seed in range(4)]
    assert "4 masks of photos" in folder.remarks[0]
    shard = open_photos(masked_shard(tmp_path / "a.tar"))
    assert len(shard) == 8 and shard[0].image.getpixel((39, 29)) != (1, 1, 1)
    assert "8 .png beside a .jpg" in shard.remarks[0]


def test_photos_and_masks_go_to_other_processes(tmp_path: Path):
    found = pickle.loads(pickle.dumps(open_masked(masked_shard(tmp_path / "a.tar"))))
    assert_same([found[0].mask], expected(1))


def test_a_palette_is_for_the_eye_and_its_indices_count():
    mask = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    palette = mask.copy()
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 756 + [224, 224, 192])
    assert palette.mode == "P"
    np.testing.assert_array_equal(read_mask(encoded(palette)), read_mask(encoded(mask)))


def test_indices_may_have_sixteen_bits():
    mask = np.array([[0, 300]], np.uint16)
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(mask))), [[0, 300]])


def test_reduced_labels_are_one_less_and_none_is_ignored():
    mask = Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8))
    np.testing.assert_array_equal(read_mask(encoded(mask), reduce_labels=True), [[255, 0, 1, 255]])


@pytest.mark.parametrize(
    ("picture", "kind", "message"),
    [(noise(), "PNG", "colours, RGB"), (masked(0)[1], "JPEG", "JPEG, which changes"), (None, "", "no PNG")],
)
def test_what_is_no_mask_is_refused(picture: Image.Image | None, kind: str, message: str):
    data = b"nothing" if picture is None else encoded(picture, kind)
    with pytest.raises(ValueError, match=message):
        read_mask(data)


def test_a_turned_photo_has_the_size_it_is_shown_in():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert upright_size(encoded(noise(40, 30), "JPEG", exif=exif)) == (30, 40)


def test_misfits_are_left_out_and_said(tmp_path: Path):
    photo, mask = masked(0)
    photos = {f"{name}.jpg": encoded(photo, "JPEG") for name in ("fits", "bare", "small", "beyond", "broken")}
    masks = {
        "fits.png": encoded(mask),
        "small.png": encoded(mask.resize((20, 15), Image.Resampling.NEAREST)),
        "beyond.png": encoded(Image.fromarray(np.full((30, 40), 9, np.uint8))),
        "broken.png": b"\x89PNG\r\n\x1a\n broken",
        "alone.mask.png": encoded(mask),
    }
    found = checked(open_masked(write_tar(tmp_path / "a.tar", photos | masks), num_classes=3))
    assert [found.photos.key(index) for index in range(len(found.photos))] == ["a.tar:fits"]
    (said,) = found.remarks
    for part in (
        "1 photos without a mask",
        "1 masks of another size than their photo",
        "20 x 15, and the photo 40 x 30",
        "1 masks with an index beyond the 3 classes",
        "index 9",
        "1 masks that cannot be read",
        "1 masks without a photo",
    ):
        assert part in said, part


def test_classes_are_counted_where_nobody_names_them(tmp_path: Path):
    found = checked(open_masked(masked_shard(tmp_path / "a.tar")))
    shown = [{*np.unique(mask).tolist()} - {IGNORED} for mask in expected(8)]
    assert found.num_classes == 3
    assert found.photos_of_class == tuple(sum(number in each for each in shown) for number in range(3))


def test_masks_of_0_and_255_alone_are_told_from_two_classes(tmp_path: Path):
    photo, _ = masked(0)
    mask = Image.fromarray(np.where(np.arange(1200).reshape(30, 40) % 2, 255, 0).astype(np.uint8))
    shard = write_tar(tmp_path / "a.tar", {"x.jpg": encoded(photo, "JPEG"), "x.png": encoded(mask)})
    with pytest.raises(ValueError, match="0 and 255 alone, and 255 is ignored"):
        checked(open_masked(shard))


@pytest.mark.parametrize("source", ["scenes:5", "photos"])
def test_sources_without_masks_are_refused(tmp_path: Path, source: str):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded(noise()))
    with pytest.raises(ValueError, match="mask"):
        open_masked(source if ":" in source else tmp_path / source)


def test_a_photo_that_cannot_be_decoded_is_a_misfit(tmp_path: Path):
    photo, mask = masked(0)
    cut = encoded(photo, "JPEG")[:200]
    shard = write_tar(tmp_path / "a.tar", {"x.jpg": cut, "x.png": encoded(mask)})
    with pytest.raises(Misfit, match="photos that cannot be read"):
        open_masked(shard)[0]
