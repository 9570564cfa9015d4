"""Which photos a run learns from, and what is said of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_photos import write_folder
from tiny_runs import QUICK, run

from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.photos import split_photos
from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.sources import open_photos


def test_photos_of_which_none_can_be_read_are_refused_before_a_step(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    photos, options = open_photos(folder), BootstrapOptions(**QUICK)
    held_back = [photos.key(index) for index in split_photos(photos, options).held_back.indices]
    for key in held_back:
        (tmp_path / key.replace(folder.name, "photos", 1)).write_bytes(b"no photo")
    with pytest.raises(ValueError, match=f"Of the 2 photos to evaluate on none can be read, {held_back[0]}"):
        run(clip_folder, folder, tmp_path / "out")
    for photo in folder.iterdir():
        photo.write_bytes(b"no photo")
    with pytest.raises(
        ValueError, match=r"Of the 22 photos to train on none can be read, .*\.png among them \(not a JPEG, "
    ):
        run(clip_folder, folder, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_photos_left_out_are_neither_trained_on_nor_held_back(clip_folder: Path, photo_folder: Path, tmp_path: Path):
    photos, names = tmp_path / "photos", tmp_path / "names.txt"
    shutil.copytree(photo_folder, photos)
    (photos / "broken.jpg").write_bytes(b"no photo")  # so that reading it leaves a trace
    names.write_text("broken.jpg\nof-another-folder.jpg\n")
    run(clip_folder, photos, tmp_path / "all", steps=12)
    assert "broken.jpg" in (tmp_path / "all" / "skipped.jsonl").read_text()
    run(clip_folder, photos, tmp_path / "without", steps=12, leave_out=names)
    assert not (tmp_path / "without" / "skipped.jsonl").exists()
    names.write_text("of-another-folder.jpg\n")
    with pytest.raises(ValueError, match="None of the 1 names"):
        run(clip_folder, photos, tmp_path / "none", leave_out=names)
    names.write_text("\n".join(path.name for path in photos.iterdir()))
    with pytest.raises(ValueError, match="none is left to train on"):
        run(clip_folder, photos, tmp_path / "nothing", leave_out=names)


def test_no_more_photos_are_used_than_asked_for(clip_folder: Path, photo_folder: Path, tmp_path: Path):
    run(clip_folder, photo_folder, tmp_path / "few", most_photos=3, held_back=1)
    assert json.loads((tmp_path / "few" / "bootstrap.json").read_text())["photos_read"] == 3


def test_names_to_leave_out_that_no_photo_has_are_said(tmp_path: Path) -> None:
    photos = open_photos(write_folder(tmp_path / "set", *(f"{number}.png" for number in range(12))))
    names = tmp_path / "names.txt"
    names.write_text("1.png\n99.png\n")
    found = split_photos(photos, replace(BootstrapOptions(), leave_out=names))
    assert found.left_out == 1 and len(found.remarks) == 1
    assert f"1 of the 2 names in {names} are none of the photos', the first of them 99.png" in found.remarks[0]


def test_a_strip_counts_as_unreadable_where_a_host_is_to_be_shown_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", *(f"{number}.png" for number in range(12)))
    Image.new("RGB", (4000, 2)).save(folder / "strip.png")
    photos = open_photos(folder)
    for for_host in (False, True):
        found = split_photos(photos, BootstrapOptions(), for_host=for_host)
        parts = (found.training, found.held_back)
        part, index = next((each, i) for each in parts for i in range(len(each)) if "strip" in each.key(i))
        if for_host:
            with pytest.raises(UnreadablePhoto, match="has 4000 x 2 pixels"):
                part[index]
        else:
            assert part[index].image.size == (4000, 2)
