"""The commands, whole: a tower and photos with masks to a model, its scores beside the dense tower and the cheap ways, and pictures."""

import json
from pathlib import Path

import pytest
from tiny_masks import masked, masked_shard

from sfvlm.cli import main
from sfvlm.encoder.folder import image_processor
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


@pytest.fixture(scope="module")
def student(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained SparseFormer of 4 tokens, whose teacher has 16."""
    teacher, out = open_teacher(clip_folder), tmp_path_factory.mktemp("student") / "sf4"
    config = student_config(teacher.config, focusing="chosen", num_tokens=4, coarse_blocks=1)
    inherit(teacher, config, None, 0)[0].save_pretrained(out)
    image_processor(config).save_pretrained(out)
    (out / "bootstrap.json").write_text(json.dumps({"teacher": str(clip_folder)}))
    return out


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_shard(tmp_path_factory.mktemp("masks") / "a.tar")


@pytest.fixture(scope="module")
def trained(student: Path, shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    main(["train-segmentation", "--model", str(student), "--train", str(shard), "--val", str(shard), "--out", str(out),
          "--training.steps", "4", "--training.batch-size", "4", "--training.device", "cpu"])  # fmt: skip
    return out


def test_a_trained_model_is_measured_as_it_says_itself(
    trained: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "results.json"
    main(
        [
            "segmentation",
            "--model",
            str(trained),
            "--data",
            str(shard),
            "--device",
            "cpu",
            "--out",
            str(out),
            "--overlays",
            "2",
        ]
    )
    (row,) = json.loads(out.read_text())["results"]
    said = json.loads((trained / "segmentation.json").read_text())
    assert row["metrics"]["miou"] == pytest.approx(said["result"]["miou"], abs=1e-6)
    assert {"gmacs", "milliseconds", "tokens", "iou", "miou_low", "miou_high"} <= row["metrics"].keys()
    assert len([*(tmp_path / "results").glob("*.png")]) == 2
    assert "mIoU averages the 3 classes that occur in the masks." in capsys.readouterr().out


def test_towers_are_probed_beside_the_dense_one_and_every_cheap_way(student: Path, shard: Path, tmp_path: Path):
    out = tmp_path / "results.json"
    main(["segmentation", "--model", str(student), "--train", str(shard), "--data", str(shard), "--controls", "--epochs", "12",
          "--device", "cpu", "--out", str(out)])  # fmt: skip
    rows = json.loads(out.read_text())["results"]
    names = [row["model"] for row in rows]
    assert names[:2] == ["teacher", "sf4@4"]
    assert {"reduce:resolution@4", "reduce:average@4", "reduce:merging@4", "reduce:stride@4"} <= {*names}
    tokens = {row["model"]: row["metrics"]["tokens"] for row in rows}
    assert tokens["teacher"] == 16 and tokens["sf4@4"] == tokens["reduce:average@4"] == 4
    assert rows[1]["metrics"]["gmacs"] < rows[0]["metrics"]["gmacs"]
    assert rows[0]["metrics"]["kept"] == 1


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err
    *_, last = said.splitlines()  # behind bars of progress
    assert last.startswith("error: ") and "Traceback" not in said
    return last


def test_what_cannot_be_measured_is_said_in_a_sentence(
    student: Path, trained: Path, shard: Path, capsys: pytest.CaptureFixture
):
    base = ("segmentation", "--data", str(shard), "--model")
    assert "knows no classes: give photos with masks" in refused(capsys, *base, str(student))
    assert "trained with classes of its own" in refused(capsys, *base, str(trained), "--names", "voc")
    assert "There is no way 'magic'" in refused(capsys, *base, str(student), "--names", "voc", "--ways", "magic")
    assert "nothing is trained" in refused(capsys, *base, str(student), "--names", "voc", "--controls")
    assert "--threshold is 0.2" in refused(capsys, *base, str(trained), "--threshold", "0.2")
    assert "--guide is for towers" in refused(capsys, *base, str(trained), "--guide", str(student))
    assert "give --out" in refused(capsys, *base, str(trained), "--overlays", "2")
    assert "no guide in" in refused(capsys, *base, str(student), "--train", str(shard), "--guide", str(shard.parent))


def test_what_cannot_be_learned_from_is_said_in_a_sentence(
    student: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    base = (
        "train-segmentation",
        "--model",
        str(student),
        "--val",
        str(shard),
        "--out",
        str(tmp_path / "out"),
        "--train",
    )
    assert "No photo of" in refused(capsys, *base, str(student))
    assert "has no masks" in refused(capsys, *base, "scenes:5")
    (tmp_path / "two.txt").write_text("red\ngreen\n")
    said = refused(capsys, *base, str(shard), "--classes", str(tmp_path / "two.txt"), "--training.steps", "0")
    assert "steps is 0" in said
    assert not (tmp_path / "out").exists()


def test_masks_beyond_the_named_classes_are_counted(
    student: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "two.txt").write_text("red\ngreen\n")
    main(["train-segmentation", "--model", str(student), "--val", str(shard), "--out", str(tmp_path / "out"), "--train", str(shard),
          "--classes", str(tmp_path / "two.txt"), "--training.steps", "1", "--training.batch-size", "2",
          "--training.device", "cpu"])  # fmt: skip
    said = capsys.readouterr().out
    assert "masks with an index beyond the 2 classes (such as a.tar:" in said
    assert "are named as photos to learn from: the score will flatter" in said


def test_a_photo_is_drawn_by_a_trained_model(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    masked(1)[0].save(tmp_path / "photo.png")
    arguments = [
        "segment",
        "--photo",
        str(tmp_path / "photo.png"),
        "--model",
        str(trained),
        "--out",
        str(tmp_path / "map.png"),
    ]
    main(arguments)
    assert (tmp_path / "map.png").is_file()
    assert "leave out --names" in refused(capsys, *arguments, "--names", "cat")


def test_a_photo_is_drawn_by_names_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    """By the shipped CLIP, which has a text tower and a tokenizer."""
    masked(1, width=80, height=60)[0].save(tmp_path / "photo.png")
    main(
        [
            "segment",
            "--photo",
            str(tmp_path / "photo.png"),
            "--out",
            str(tmp_path / "map.png"),
            "--names",
            "red",
            "green",
            "blue",
        ]
    )
    said = capsys.readouterr().out
    assert "dense, 196 tokens: " in said and "sparse, 49 tokens: " in said
    assert "Say what to look for" in refused(
        capsys, "segment", "--photo", str(tmp_path / "photo.png"), "--out", str(tmp_path / "m.png")
    )


def test_help_of_each_command_is_told(capsys: pytest.CaptureFixture):
    for name in ("segmentation", "train-segmentation", "segment"):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert "--model" in capsys.readouterr().out
