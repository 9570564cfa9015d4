"""The README is true: its files exist, its Python runs, its flags are flags."""

import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_model

from sfvlm.encoder.folder import image_processor

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_room_is_in_the_tree_with_a_line() -> None:
    tree = README.split("## The files")[1]
    rooms = {path.name for path in (ROOT / "sfvlm").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert set(re.findall(r"^  (\w+)/ +\w", tree, re.M)) == rooms


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_and_names_on_a_page_are_there(page: Path) -> None:
    text = page.read_text()
    files = {name for name in re.findall(r"[\w/]+/\w+\.(?:py|md|png)\b", text) if not name.startswith(("runs/", "/"))}
    assert {
        name for name in files if not any((top / name).exists() for top in (ROOT, ROOT / "sfvlm", page.parent))
    } == set()
    for name in sorted(set(re.findall(r"\bsfvlm(?:\.\w+)+", text))):
        pkgutil.resolve_name(name)


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


@pytest.mark.parametrize(
    "script",
    [
        "scripts/bootstrap_clip.py",
        "scripts/swap_llava_tower.py",
        "scripts/convert_llava.py",
        "eval/zeroshot.py",
        "eval/vqa.py",
        "eval/fidelity.py",
        "eval/speed.py",
    ],
)
def test_scripts_explain_themselves_and_know_the_readmes_flags(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:  # in this process: a new one takes half a minute to import torch
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for line in re.findall(rf"^python {script} (.*)$", README, re.M):
        for flag in re.findall(r"--[a-z-]+", line):
            assert flag in said, flag
