import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_hosts import opened
from transformers import AutoProcessor, CLIPVisionConfig, CLIPVisionModel, LlavaImageProcessor

from sfvlm import SparseFormerModel
from sfvlm.bootstrap.alignment import for_host
from sfvlm.bootstrap.batches import pixels_of
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.run import bootstrap
from sfvlm.bootstrap.targets.interview import read_prompts
from sfvlm.commands.bootstrap import bootstrap_command
from sfvlm.commands.options.bootstrap import BootstrapCommand
from sfvlm.encoder.configuration import CLIP_MEAN
from sfvlm.hosts.host import open_host
from sfvlm.hosts.reader import HostReader
from sfvlm.hosts.swap import swap
from sfvlm.photos.sources import open_photos
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import check_own_tower, open_teacher
from sfvlm.teachers.student import student_config

QUICK: dict[str, Any] = dict(
    steps=6, batch_size=4, workers=0, held_back=2, eval_every=0, save_every=100, log_every=1, cpu=True, host_turns=2
)


def run(host: Path, photos: Path, out: Path, **changes: Any) -> dict[str, float]:
    teacher = open_teacher(host)
    student, report = inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4), 1)
    options = BootstrapOptions(**(QUICK | {"objective": for_host(Objective(), -2)} | changes))
    return bootstrap(teacher, student, report, open_photos(photos), out, options, host=open_host(host, device="cpu"))


def test_a_host_is_kept_and_its_words_come_nearer(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in opened(llava)[0].state_dict().items()}
    objective = Objective(pooled=0.0, projected=1.0, answers=1.0)
    quick = dict(steps=24, batch_size=8, learning_rate=3e-3, budgets=(4, 9), warmup=0.1, objective=objective)
    result = run(llava, photo_folder, tmp_path / "out", **quick)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["answers"] for line in lines if "answers" in line]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert 0 <= result["answer_agreement"] <= 1
    after = opened(llava)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)

    tower = SparseFormerModel.from_pretrained(tmp_path / "out")
    assert tower.config.aligned_layers == [-2]
    model, processor = opened(llava)
    swap(model, processor, tower)
    model, processor = opened(llava)
    model.config.vision_feature_layer = -1
    with pytest.raises(ValueError, match=r"reads layer -1 .* aligned at layer -2"):
        swap(model, processor, tower)


def test_the_command_aligns_with_a_host_by_default_objectives(
    llava: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tower"
    training = BootstrapOptions(**(QUICK | dict(steps=2, ema_decay=0.9, objective=Objective(anchor="nearest"))))
    command = BootstrapCommand(host=str(llava), photos=[str(photo_folder)], out=out, num_tokens=4, training=training)
    bootstrap_command(command)
    facts = json.loads((out / "bootstrap.json").read_text())
    assert facts["teacher"] == facts["host"]["source"] == str(llava)
    objective = facts["options"]["objective"]
    assert [objective[name] for name in ("pooled", "projected", "answers")] == [0, 1, 1]
    assert objective["anchor"] == "nearest"
    assert SparseFormerModel.from_pretrained(out).config.aligned_layers == [-2]  # of the averaged weights too
    assert f"swap_llava_tower.py --host {llava} --tower {out}" in capsys.readouterr().out


def test_a_teacher_that_is_not_the_hosts_own_tower_is_refused(
    llava: Path, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    own, finetuned = tmp_path / "own", tmp_path / "finetuned"
    tower = CLIPVisionModel(CLIPVisionConfig(**opened(llava)[0].config.vision_config.to_dict()))
    tower.load_state_dict(opened(llava)[0].model.vision_tower.state_dict())
    tower.half().save_pretrained(own)
    with torch.no_grad():
        next(each for name, each in tower.named_parameters() if "layers.1.mlp.fc2.weight" in name).mul_(1.02)
    tower.save_pretrained(finetuned)
    check_own_tower(open_teacher(own), open_teacher(llava))
    for teacher, name in ((finetuned, r"blocks\.1\.mlp\.fc2\.weight"), (clip_folder, "num_hidden_layers")):
        command = BootstrapCommand(
            teacher=str(teacher), host=str(llava), photos=[str(photo_folder)], out=tmp_path / "out", num_tokens=4
        )
        with pytest.raises(ValueError, match=rf"{teacher} is not the tower of the host {llava}: its {name} is another"):
            bootstrap_command(command)


def test_the_tower_of_a_host_that_pads_learns_from_padded_photos(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = shutil.copytree(llava, tmp_path / "host")
    own = AutoProcessor.from_pretrained(host)
    own.image_processor = LlavaImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True
    )
    own.save_pretrained(host)
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.new("RGB", (90, 30), (0, 250 - index, 0)).save(tmp_path / "photos" / f"{index}.png")
    seen: list[torch.Tensor] = []
    for place in ("step", "held_back"):
        monkeypatch.setattr(
            f"sfvlm.bootstrap.{place}.pixels_of",
            lambda batch, *where: seen.append(batch["pixels"]) or pixels_of(batch, *where),
        )
    run(host, tmp_path / "photos", tmp_path / "out", steps=1, crop_scale=(1.0, 1.0))
    colour = [int(255 * mean) for mean in CLIP_MEAN]
    assert len(seen) == 2  # a step, and the evaluation
    for views in seen:
        grey = (views == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(dim=1).float().mean(dim=(1, 2))
        assert grey.min() > 0.4 and grey.max() < 0.75  # two thirds of the square but for what resizing blurs


def test_a_host_and_an_evaluation_are_given_no_more_photos_at_once_than_a_step(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    select = HostReader.select
    monkeypatch.setattr(
        HostReader, "select", lambda self, states, extra: sizes.append(len(states[0])) or select(self, states, extra)
    )
    run(llava, photo_folder, tmp_path / "out", steps=1, batch_size=2, host_turns=1, held_back=5)
    assert max(sizes) == 2


def test_what_needs_a_host_says_so(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    teacher = open_teacher(llava)
    student, report = inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4), 1)
    options = BootstrapOptions(**(QUICK | {"objective": Objective(answers=1.0)}))
    with pytest.raises(ValueError, match="need a host: give --host"):
        bootstrap(teacher, student, report, open_photos(photo_folder), tmp_path / "out", options)
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"prompts\.txt is empty"):
        read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9?")
    with pytest.raises(ValueError, match=r"prompts\.txt is no UTF-8 text"):
        read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("Why?\n", encoding="utf-8-sig")  # as editors on Windows write it
    assert read_prompts(tmp_path / "prompts.txt") == ("Why?",)
