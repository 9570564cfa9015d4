"""The command that teaches a guide: where it writes, whose map it learns, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

import sfvlm.dense.views as views
from sfvlm.cli import command
from sfvlm.dense.guide import open_guide
from sfvlm.dense.options import GuideOptions
from sfvlm.encoder.folder import open_config
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config

SHORT = "--views 24 --steps 3 --batch-size 4 --budgets 9 --guide-size 16 --device cpu".split()


@pytest.fixture
def student(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untrained student of four tokens that says what it was made from; chunks of eight views."""
    for module in ("sfvlm.dense.views", "sfvlm.dense.learning"):
        monkeypatch.setattr(f"{module}.CHUNK", 8)
    monkeypatch.setattr(views, "AT_ONCE", 4)
    teacher = open_teacher(clip_folder)
    model, _ = inherit(teacher, student_config(teacher.config, num_tokens=4))
    model.save_pretrained(tmp_path / "student")
    (tmp_path / "student/bootstrap.json").write_text(json.dumps({"teacher": str(clip_folder)}))
    return tmp_path / "student"


def test_the_guide_lies_in_the_models_folder_and_says_how_it_was_made(student: Path, photo_folder: Path):
    before = (student / "model.safetensors").read_bytes()
    command("train-guide", ["--model", str(student), "--photos", str(photo_folder), *SHORT, "--context-share", "1"])
    guide = open_guide(student, open_config(student))
    assert guide is not None and guide.config.context_share == 1 and guide.config.even_share == 1
    assert (student / "model.safetensors").read_bytes() == before
    facts = json.loads((student / "guide/guide.json").read_text())
    assert facts["options"]["steps"] == 3 and set(facts["explained"]) == {"guided", "nearest"}
    assert (student / "guide/metrics.jsonl").is_file() and not (student / "guide-training").exists()


def test_a_guide_goes_on_from_an_earlier_one(student: Path, photo_folder: Path, tmp_path: Path):
    asked = ["--model", str(student), "--photos", str(photo_folder), *SHORT]
    command("train-guide", [*asked, "--out", str(tmp_path / "first")])
    command(
        "train-guide",
        [*asked, "--out", str(tmp_path / "second"), "--start-from", str(tmp_path / "first"), "--guide-size", "8"],
    )
    first, second = (open_guide(tmp_path / name, open_config(student)) for name in ("first", "second"))
    assert first is not None and second is not None
    assert second.config.guide_size == 16 and torch.equal(first.std, second.std)
    assert not torch.equal(first.missing.weight, second.missing.weight)
    assert json.loads((tmp_path / "second/guide/guide.json").read_text())["started_from"]


def test_what_cannot_be_is_one_sentence(student: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]):
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            command("train-guide", [*arguments, "--photos", str(photo_folder), *SHORT])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "There is no guide in" in said("--model", str(student), "--start-from", str(student))
    assert "give a folder (--out)" in said("--model", "sparseformer-tiny-49")
    (student / "guide").mkdir()
    (student / "guide/config.json").write_text("{}")
    assert "is there already" in said("--model", str(student))
    (student / "bootstrap.json").unlink()
    assert "name its teacher (--teacher)" in said("--model", str(student))


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="batch_size is 48"):
        GuideOptions(batch_size=48)
    with pytest.raises(ValueError, match=r"crop_scale is 0\.5 to 0\.2"):
        GuideOptions(crop_scale=(0.5, 0.2))
    with pytest.raises(ValueError, match="steps is 0"):
        GuideOptions(steps=0)
