import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_runs import run


def test_a_card_does_not_call_held_back_what_was_trained_on(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    run(clip_folder, photo_folder, tmp_path / "out", steps=1, held_back=0)
    assert "On a photo it was trained on, for none was held back" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "bootstrap.json").read_text())["photos_held_back"] == 0


def test_a_folder_whose_name_is_no_utf_8_is_trained_on_to_the_end(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        shutil.copytree(photo_folder, folder)
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    run(clip_folder, folder, tmp_path / "out", steps=1)
    assert f"- {tmp_path}/caf?" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
