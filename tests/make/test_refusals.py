"""What cannot be made is one sentence, before anything is written."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_makes import recipe
from tiny_photos import write_folder

from sfvlm.cli import main
from sfvlm.make.run import make


def refused(sentence: str, out: Path, *words: object) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(*words, out)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_tokens": 5}, "starts from a square grid: try 4 or 9"),
        ({"num_tokens": 25}, "25"),
        ({"steps": 0}, "--steps is 0; it must be at least 1"),
        ({"held_back": 0}, "--held-back is 0"),
        ({"alternatives": ["strides"]}, "no method 'strides'; the methods are"),
        ({"alternatives": ["stride", "stride"]}, "stride is given twice"),
        ({"alternatives": ["merging"]}, "blocks cannot merge"),
        ({"photos": ["nowhere"]}, "nowhere"),
        ({"photos": []}, "no photos for .* to learn from: give --photos FOLDER"),
    ],
)
def test_what_does_not_fit_together(
    changes: dict[str, Any], sentence: str, llava: Path, photo_folder: Path, tmp_path: Path
):
    refused(sentence, tmp_path / "out", replace(recipe(llava, photo_folder), **changes))
    assert not (tmp_path / "out").exists()


def test_a_host_that_is_none_or_was_swapped(
    clip_folder: Path, swapped_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused("is no host: its config.json says 'clip'", out, recipe(clip_folder, photo_folder))
    refused("There is no host in", out, recipe(tmp_path / "nowhere", photo_folder))
    refused("sparseformer", out, recipe(swapped_folder, photo_folder))
    assert not out.exists()


def test_too_few_photos_or_none_that_can_be_read(llava: Path, tmp_path: Path) -> None:
    few = write_folder(tmp_path / "few", *(f"{number}.png" for number in range(5)))
    refused("There are 5 photos in .*, and at least 20 are needed", tmp_path / "out", recipe(llava, few))
    broken = tmp_path / "broken"
    broken.mkdir()
    for number in range(30):
        (broken / f"{number}.png").write_bytes(b"no photo")
    refused("None of the 30 photos can be held back", tmp_path / "other", recipe(llava, broken))


def test_a_folder_of_something_else_or_of_another_recipe(
    made: Path, llava: Path, photo_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("a year of work")
    refused("holds something that `sfvlm make` did not put there", tmp_path / "mine", recipe(llava, photo_folder))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    refused(r"other arguments \(num_tokens: 4 then, 9 now\)", made, recipe(llava, photo_folder, num_tokens=9))
    more = shutil.copytree(photo_folder, tmp_path / photo_folder.name)
    (more / "another.png").write_bytes((more / "000.png").read_bytes())
    refused("number of photos: 24 then, 25 now", made, recipe(llava, more))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "make.json").write_text("{}")
    refused("is damaged: it does not say what was asked", tmp_path / "damaged", recipe(llava, photo_folder))


def test_the_command_says_it_in_one_line(llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["make", "--host", str(llava)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: There are no photos for") and error.count("\n") == 1
