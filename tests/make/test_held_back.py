"""Which photos are measured on."""

import os
import sys
from pathlib import Path

import pytest
from tiny_photos import write_folder

from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.photos import split_photos
from sfvlm.make.held_back import HeldBack, hold_back
from sfvlm.photos.sources import open_photos


def names(held: HeldBack) -> list[str]:
    return [held.photos.key(index) for index in range(len(held.photos))]


def test_the_draw_depends_on_the_seed_alone_and_is_written_down(photo_folder: Path, tmp_path: Path) -> None:
    photos = open_photos(photo_folder)
    first = names(hold_back(photos, 4, 0, tmp_path / "first.txt"))
    assert first == names(hold_back(photos, 4, 0, tmp_path / "again.txt"))
    assert first != names(hold_back(photos, 4, 1, tmp_path / "other.txt"))
    assert (tmp_path / "first.txt").read_text().splitlines() == first == sorted(first)
    assert first == names(hold_back(photos, 2, 7, tmp_path / "first.txt"))  # what is written counts


def test_at_most_a_fifth_is_held_back(photo_folder: Path, tmp_path: Path) -> None:
    assert len(hold_back(open_photos(photo_folder), 100, 0, tmp_path / "names.txt").photos) == 24 // 5


def test_photos_that_cannot_be_read_are_said_and_others_drawn(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", *(f"{number:02d}.png" for number in range(20)))
    for number in range(0, 20, 2):
        (folder / f"{number:02d}.png").write_bytes(b"no photo")
    held = hold_back(open_photos(folder), 4, 0, tmp_path / "names.txt")
    assert len(held.photos) == 4 and all(int(name[-6:-4]) % 2 for name in names(held))
    assert held.unreadable and all(int(name[-6:-4]) % 2 == 0 for name in held.unreadable)


def test_training_leaves_exactly_these_out(photo_folder: Path, tmp_path: Path) -> None:
    photos, path = open_photos(photo_folder), tmp_path / "names.txt"
    held = hold_back(photos, 4, 0, path)
    split = split_photos(photos, BootstrapOptions(leave_out=path, held_back=2))
    seen = {part.key(index) for part in (split.training, split.held_back) for index in range(len(part))}
    assert seen | set(names(held)) == {photos.key(index) for index in range(24)}
    assert not seen & set(names(held))


def test_names_that_two_photos_have_or_that_lose_a_space_are_not_drawn(tmp_path: Path) -> None:
    some = write_folder(tmp_path / "a" / "photos", "same.png", *(f"{number:02d}.png" for number in range(10)))
    more = write_folder(
        tmp_path / "b" / "photos", "same.png", "x\ny.png", *(f"{number:02d}.png" for number in range(10, 20))
    )
    photos = open_photos([some, more])
    drawn = {name for seed in range(12) for name in names(hold_back(photos, 4, seed, tmp_path / f"{seed}.txt"))}
    assert len(drawn) > 12 and not drawn & {"photos/same.png", "photos/x\ny.png"}


@pytest.mark.skipif(
    sys.getfilesystemencoding() != "utf-8" or os.name == "nt", reason="the file system takes UTF-8 alone"
)
def test_names_that_are_no_utf_8_are_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_folder(folder, *(f"{number:02d}.png" for number in range(20)))
    for number, file in enumerate(sorted(folder.iterdir())):
        os.rename(file, os.fsencode(folder) + b"/\xe9%d.png" % number)
    photos = open_photos(folder)
    first = names(hold_back(photos, 4, 0, tmp_path / "names.txt"))
    assert names(hold_back(photos, 4, 0, tmp_path / "names.txt")) == first
    assert split_photos(photos, BootstrapOptions(leave_out=tmp_path / "names.txt")).left_out == 4


def test_a_photo_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", *(f"{number:02d}.png" for number in range(21)))
    lost = names(hold_back(open_photos(folder), 4, 0, tmp_path / "names.txt"))[0]
    (tmp_path / lost).unlink()
    with pytest.raises(ValueError, match=f"1 of the 4 photos .* are not there any more, {lost} among them"):
        hold_back(open_photos(folder), 4, 0, tmp_path / "names.txt")
