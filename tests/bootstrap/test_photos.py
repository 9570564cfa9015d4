import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import QUICK, run

from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.photos import split_photos
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
