"""How near a tower keeps its host: zero for the same one, torch's divergence for another, by photo."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_hosts import tiny_tower
from transformers import LlavaImageProcessor

from sfvlm.bootstrap.targets.conversations import Conversations
from sfvlm.bootstrap.targets.interview import Interview
from sfvlm.cli import main
from sfvlm.evaluate.fidelity import measure_fidelity
from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.named_towers import put_tower
from sfvlm.hosts.reader import HostReader
from sfvlm.hosts.swap import swap
from sfvlm.look.sides import twin_of
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import open_photos
from sfvlm.photos.views import evaluation_view, normalize, tower_pixels
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


@pytest.fixture(scope="module")
def host(llava: Path) -> Host:
    return open_host(llava, device="cpu")


@pytest.fixture(scope="module")
def interview(host: Host, llava: Path) -> Interview:
    reader = HostReader(host.model, host.processor)
    return Interview(reader, host.processor, host.fingerprint, open_teacher(llava).model, turns=3, seed=0)


def test_an_untrained_tower_at_the_full_grid_is_the_same_host(interview: Interview, llava: Path, photo_folder: Path):
    teacher = open_teacher(llava)
    whole, _ = inherit(teacher, student_config(teacher.config, num_tokens=16, focusing="chosen"))
    few, _ = inherit(teacher, student_config(teacher.config, num_tokens=4, focusing="chosen"))
    towers = {"whole": whole.eval(), "few": few.eval()}
    found = measure_fidelity(replace(interview, at_once=5), towers, open_photos(photo_folder))
    assert len(found["whole"].photos) == len(found["whole"].divergence) == 24
    assert max(found["whole"].divergence) == pytest.approx(0, abs=1e-5)
    assert set(found["whole"].same_words) == {1.0}
    assert min(found["few"].divergence) > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("tower", ["reduce:stride@4", "without class token"])
def test_a_divergence_is_that_of_the_swapped_host_itself(
    tower: str, interview: Interview, host: Host, photo_folder: Path, tmp_path: Path
):
    photos, twin = open_photos(photo_folder), twin_of(host)
    if tower.startswith("reduce"):
        put_tower(twin, tower)
    else:
        swap(twin.model, twin.processor, tiny_tower(4, pooling="mean"))
    towers = {tower: twin.model.model.vision_tower}
    found = measure_fidelity(interview, towers, photos, tmp_path / "answers.jsonl")[tower]
    texts = Conversations(host.processor, interview.answers(photos, tmp_path / "answers.jsonl"), 0)
    config = interview.dense.config
    for index in (0, 7):
        talk = texts.batch(torch.tensor([index]), torch.tensor([0]))
        view = normalize(evaluation_view(photos[index].image, 56)[None], config.image_mean, config.image_std)
        logs = []
        for one, count in ((host, 16), (twin, 4)):
            image = torch.full((count,), host.processor.image_token_id)
            ids = torch.cat([talk.before, image, talk.after[0]])[None]
            places = len(talk.before) + count + talk.place - 1
            logs.append(one.model(input_ids=ids, pixel_values=view).logits[0, places].log_softmax(-1))
        each = torch.nn.functional.kl_div(logs[1], logs[0], reduction="none", log_target=True).sum(-1)
        same = (logs[0].argmax(-1) == logs[1].argmax(-1)).float()
        weight = talk.weight / talk.weight.sum()
        assert found.photos[index] == photos.key(index)
        assert found.divergence[index] == pytest.approx((each * weight).sum().item(), rel=1e-3, abs=1e-6)
        assert found.same_words[index] == pytest.approx((same * weight).sum().item(), abs=1e-6)


def test_a_host_that_pads_its_photos_is_asked_about_padded_ones(interview: Interview, host: Host):
    oblong = render_scene(0, 0, 96).image.resize((96, 40))
    assert interview.shown(oblong) is oblong
    own = interview.processor.image_processor
    pads = LlavaImageProcessor(size=own.size, crop_size=own.crop_size, do_pad=True)
    processor = copy.copy(host.processor)
    processor.image_processor = pads
    shown = replace(interview, reader=HostReader(host.model, processor)).shown(oblong)
    config = interview.dense.config
    ours, theirs = tower_pixels([shown], config, torch.zeros(1)), pads(oblong, return_tensors="pt")["pixel_values"]
    assert (ours - theirs).abs().max() < 0.02
    assert (tower_pixels([oblong], config, torch.zeros(1)) - theirs).abs().mean() > 0.1


def test_the_command_keeps_answers_and_writes_rows(
    llava: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "fidelity.json"
    flags = ["--host", str(llava), "--photos", str(photo_folder), "--turns", "2", "--limit", "6", "--device", "cpu"]
    main(["fidelity", *flags, "--tower", "reduce:stride@4", "reduce:average@9", "--out", str(out)])
    kept = (tmp_path / "fidelity" / "answers.jsonl").read_text()
    assert len(kept.splitlines()) == 7
    second: dict[str, Any] = json.loads(out.read_text())["results"][1]["metrics"]
    first: dict[str, Any] = json.loads(out.read_text())["results"][0]["metrics"]
    assert (
        second["difference"] == pytest.approx(second["divergence"] - first["divergence"]) and "difference" not in first
    )
    main(["fidelity", *flags, "--tower", "reduce:average@9", "--out", str(out)])
    assert (tmp_path / "fidelity" / "answers.jsonl").read_text() == kept
    row: dict[str, Any] = json.loads(out.read_text())["results"][0]
    assert row["metrics"]["tokens"] == 9 and row["metrics"]["photos"] == 6
    assert 0 < row["metrics"]["divergence_low"] <= row["metrics"]["divergence"] <= row["metrics"]["divergence_high"]
    assert "reduce:average@9" in capsys.readouterr().out


def test_photos_that_a_file_names_are_asked_about_alone(
    llava: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "names.txt").write_text("003.png\nscenes/017\nelsewhere.png\n")
    out, names = tmp_path / "fidelity.json", str(tmp_path / "names.txt")
    flags = [
        "--photos",
        str(photo_folder),
        "--only",
        names,
        "--tower",
        "reduce:stride@4",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    main(["fidelity", "--host", str(llava), *flags])
    asked = (tmp_path / "fidelity" / "answers.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["key"] for line in asked] == ["scenes/003.png", "scenes/017.png"]
    assert "1 of the 3 names" in capsys.readouterr().out and json.loads(out.read_text())["only"] == names


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tower", "reduce:stride"], "has no budget of its own"),
        (["--tower", "nowhere"], "'nowhere' is neither a path nor a name"),
        (["--tower", "reduce:stride@4", "reduce:stride@4"], "is given 2 times"),
        (["--turns", "0"], "--turns is 0; it must be at least 1"),
        (["--out", "fidelity.txt"], "it must end in .json"),
    ],
)
def test_bad_input_is_one_sentence(flags: list[str], sentence: str, llava: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["fidelity", "--host", str(llava), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_photos_of_which_nothing_is_said_are_named(interview: Interview, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no photo")
    with pytest.raises(ValueError, match="none of them can be read"):
        measure_fidelity(interview, {}, open_photos(tmp_path))


@torch.no_grad()
def test_photos_that_are_gone_since_they_were_asked_about_are_passed_over(
    interview: Interview, llava: Path, tmp_path: Path
):
    teacher = open_teacher(llava)
    few, _ = inherit(teacher, student_config(teacher.config, num_tokens=4, focusing="chosen"))
    for index in range(3):
        render_scene(0, index, 56).image.save(tmp_path / f"{index}.png")
    photos, asked = open_photos(tmp_path), tmp_path / "answers.jsonl"
    whole = measure_fidelity(interview, {"few": few.eval()}, photos, asked)["few"]
    (tmp_path / "1.png").unlink()
    left = measure_fidelity(replace(interview, at_once=1), {"few": few.eval()}, photos, asked)["few"]
    assert left.photos == whole.photos[::2]
    assert left.divergence == pytest.approx(whole.divergence[::2], rel=1e-3)


@torch.no_grad()
def test_a_tower_sees_photos_of_its_own_size(interview: Interview, llava: Path, photo_folder: Path):
    teacher = open_teacher(llava)
    config = student_config(teacher.config, num_tokens=16, focusing="inherited", image_size=28)
    small, _ = inherit(teacher, config)
    seen: list[torch.Size] = []
    small.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    measure_fidelity(interview, {"small": small.eval()}, open_photos(photo_folder))
    assert {tuple(shape[1:]) for shape in seen} == {(3, 28, 28)}


def test_photos_too_long_to_be_shown_are_passed_over_and_said(llava: Path, tmp_path: Path, capsys: Any) -> None:
    render_scene(0, 1, 48).image.save(tmp_path / "a.png")
    Image.new("RGB", (1, 5000)).save(tmp_path / "b.png")
    main(["fidelity", "--host", str(llava), "--photos", str(tmp_path), "--tower", "reduce:stride@4", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "through others: 1 photos" in printed
    assert re.search(r"1 of 2 photos were passed over, the first of them .*b\.png: it has 1 x 5000 pixels", printed)
