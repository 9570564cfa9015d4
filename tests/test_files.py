from pathlib import Path

import pytest
from PIL import Image

from sfvlm.files import appearing, replacing, replacing_inside, write_text


def test_a_file_takes_its_place_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    for name in ("first", "second"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(file: Path) -> None:
        file.write_text("half")
        raise error

    path = tmp_path / "notes.txt"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as temporary:
        fail(temporary)
    with pytest.raises(error), replacing_inside(tmp_path) as folder:
        fail(folder / "notes.txt")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_never_loses_files_to_a_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OSError, match="folder"):
        write_text(tmp_path / "folder", "text")
    assert (tmp_path / "folder" / "kept").exists()


def test_a_folder_that_came_into_being_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "out"

    def meanwhile(folder: Path) -> None:
        folder.mkdir()
        (folder / "ours").touch()
        out.mkdir()
        (out / "theirs").touch()

    with pytest.raises(ValueError, match="out exists: choose another one"), appearing(out) as temporary:
        meanwhile(temporary)
    assert [file.name for file in out.iterdir()] == ["theirs"]
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("below", ["out", "deeper/out"])
def test_a_folder_below_a_file_is_refused_with_one_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / below
    with pytest.raises(ValueError, match=r"^The folder .* cannot be made: [^\n]+\.$"), appearing(out):
        pass
    assert (tmp_path / "file").is_file()


def test_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last


def test_files_replace_their_namesakes_and_spare_the_others(tmp_path: Path) -> None:
    write_text(tmp_path / "config.json", "old")
    write_text(tmp_path / "metrics.jsonl", "kept")
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "of a killed process").touch()
    with replacing_inside(tmp_path) as folder:
        (folder / "config.json").write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "config.json": "new",
        "metrics.jsonl": "kept",
    }


def test_the_suffix_that_says_the_format_of_a_picture_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "boxes.png") as temporary:
        Image.new("RGB", (2, 2)).save(temporary)
    assert Image.open(tmp_path / "boxes.png").format == "PNG"
