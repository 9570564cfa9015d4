"""The README is true and short: its Python runs, its tree is the house. What holds of every page is in `test_docs`."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_docs import SCRIPTS
from tiny import tiny_model

from sfvlm.encoder.folder import image_processor

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_room_is_in_the_tree_with_a_line() -> None:
    tree = README.split("## The rooms")[1]
    rooms = {path.name for path in (ROOT / "sfvlm").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert set(re.findall(r"^  (\w+)/ +\w", tree, re.M)) == rooms


def test_it_is_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 150


def test_the_python_on_the_first_screen_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(num_tokens=49, teacher_grid=14, image_size=28, glimpse_size=4, teacher_patch_size=2)
    model.save_pretrained(tmp_path / "runs/sf49")
    image_processor(model.config).save_pretrained(tmp_path / "runs/sf49")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", README, re.S)
    assert snippet
    names: dict[str, object] = {}
    exec(snippet[1], names)
    assert names["output"].hidden_states[-2].shape == torch.Size([1, 50, 64])  # type: ignore[attr-defined]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_explain_themselves(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:  # in this process: a new one takes half a minute to import torch
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out) > 400
