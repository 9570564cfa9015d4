"""Which photos a run learns from, and what is said of them."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_photos import write_folder

from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.photos import split_photos
from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.sources import open_photos


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
