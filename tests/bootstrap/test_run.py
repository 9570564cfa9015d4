import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import QUICK, command, lines, run

from sfvlm import SparseFormerModel
from sfvlm.bootstrap.checkpoints import list_checkpoints
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.commands.bootstrap import bootstrap_command
from sfvlm.commands.options.bootstrap import BootstrapCommand
from sfvlm.encoder.folder import open_student
from sfvlm.teachers.open import open_teacher


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_a_run_writes_a_folder_that_loads_and_says_where_it_came_from(
    focusing: str, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    run(clip_folder, photo_folder, tmp_path / "out", focusing=focusing)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "config.json", "model.safetensors", "preprocessor_config.json", "inheritance.json", "bootstrap.json",
        "metrics.jsonl", "README.md", "checkpoints",
    } <= files  # fmt: skip
    model = SparseFormerModel.from_pretrained(tmp_path / "out")
    assert model(torch.randn(1, 3, 32, 32)).pooler_output.shape == (1, 24)
    facts = json.loads((tmp_path / "out" / "bootstrap.json").read_text())
    assert facts["photos_seen"] == 24
    assert facts["teacher_sha256"] == open_teacher(clip_folder).sha256
    assert {"step", "loss", "box_size", "box_coverage", "rate", "photos_a_second"} <= lines(tmp_path / "out")[0].keys()
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == [
        "step-00000004",
        "step-00000006",
    ]


def test_training_brings_the_student_nearer_and_touches_nothing_frozen(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    trained = run(clip_folder, photo_folder, tmp_path / "out", steps=40, batch_size=8, eval_every=0, save_every=100)
    assert trained is not None
    teacher = open_teacher(clip_folder).model.state_dict()
    assert torch.equal(trained["blocks.3.attn.qkv.weight"], teacher["blocks.3.attn.qkv.weight"])
    assert torch.equal(trained["head.projection.weight"], teacher["head.projection.weight"])
    assert not torch.equal(trained["blocks.0.attn.qkv.weight"], teacher["blocks.0.attn.qkv.weight"])
    losses = [line["loss"] for line in lines(tmp_path / "out") if "loss" in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_two_processes_give_the_single_process_result(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # 4 tokens in the first step; then 16, with which every block sees all patches: proportional attention gets no gradient.
    flags = ("--steps", "4", "--workers", "0", "--budgets", "16", "4")
    one, two = (command(clip_folder, photo_folder, tmp_path / name, *flags) for name in ("one", "two"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(one, check=True, env=environment, capture_output=True)
    subprocess.run([*launcher, *two[1:]], check=True, env=environment, capture_output=True)
    # Not weight by weight: a key's bias has no effect and no gradient but rounding noise, which Adam scales to full steps.
    losses = [[line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    pixels = torch.randn(3, 3, 32, 32)
    first, second = (
        SparseFormerModel.from_pretrained(tmp_path / name)(pixels).pooler_output for name in ("one", "two")
    )
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


def test_a_folder_that_holds_checkpoints_or_a_model_is_not_begun_in(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    early, model, file = tmp_path / "early", tmp_path / "model", tmp_path / "file"
    run(clip_folder, photo_folder, early, stop_after=2, log_every=100, eval_every=0)
    assert not (early / "metrics.jsonl").exists() and list_checkpoints(early / "checkpoints")
    with pytest.raises(ValueError, match="continue it with --resume"):
        run(clip_folder, photo_folder, early, seed=1)
    shutil.copytree(clip_folder, model)
    before = (model / "config.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds a model, and no run that made it"):
            run(clip_folder, photo_folder, model, resume=resume)
    assert (model / "config.json").read_bytes() == before
    file.touch()
    with pytest.raises(ValueError, match=f"The folder {file} cannot be made: File exists"):
        run(clip_folder, photo_folder, file)


def test_a_student_is_trained_on_for_another_run(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    def trained(out: Path, *, tuned_blocks: int, start_from: Path | None = None) -> set[str]:
        training = BootstrapOptions(**(QUICK | dict(steps=2)))
        bootstrap_command(
            BootstrapCommand(
                teacher=str(clip_folder), photos=[str(photo_folder)], out=out, num_tokens=4, tuned_blocks=tuned_blocks,
                start_from=start_from, training=training,
            )
        )  # fmt: skip
        rows = json.loads((out / "inheritance.json").read_text())["rows"]
        return {row["student"][:8] for row in rows if row["trained"] and row["student"].startswith("blocks.")}

    first, second = tmp_path / "first", tmp_path / "second"
    assert trained(first, tuned_blocks=2) == {"blocks.0", "blocks.1"}
    assert trained(second, tuned_blocks=1, start_from=first) == {"blocks.0", "blocks.1"}
    facts, card = (json.loads((second / "bootstrap.json").read_text()), (second / "README.md").read_text())
    assert facts["started_from"] == str(first) and f"going on from `{first}`" in card
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    changed = {name[:8] for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if name.startswith("blocks.")} == {"blocks.0"}


def test_an_earlier_student_can_be_told_to_choose_otherwise(clip_folder: Path, photo_folder: Path, tmp_path: Path):
    def command(out: Path, **changes: object) -> BootstrapCommand:
        training = BootstrapOptions(**(QUICK | dict(steps=2)))
        fields = dict(teacher=str(clip_folder), photos=[str(photo_folder)], out=out, num_tokens=4, focusing="chosen")
        return BootstrapCommand(**(fields | changes), training=training)

    def chosen_by(out: Path) -> tuple[float, float, int]:
        config = SparseFormerModel.from_pretrained(out).config
        return config.even_share, config.context_share, config.context_blocks

    first, second = tmp_path / "first", tmp_path / "second"
    bootstrap_command(command(first, context_blocks=1))
    assert chosen_by(first) == (0.2, 1.0, 1)
    bootstrap_command(command(second, start_from=first, even_share=0.5, context_share=0.5))
    assert chosen_by(second) == (0.5, 0.5, 1)
    with pytest.raises(ValueError, match=r"even_share is 1\.5"):
        bootstrap_command(command(tmp_path / "third", start_from=first, even_share=1.5))
    with pytest.raises(ValueError, match=r"other settings \(context_share: 1.0 then, 0.25 now\)"):
        bootstrap_command(command(first, context_blocks=1, context_share=0.25, resume=True))


@pytest.mark.parametrize("content", ['{"model_type": "spar', "[]"])
def test_a_student_of_a_damaged_configuration_is_refused_by_its_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (is no JSON|holds no JSON object)"):
        open_student(tmp_path)


@pytest.mark.parametrize("objective", [Objective(), Objective(pooled=0.5, tokens=1.0)])
def test_a_run_at_reckless_rates_cannot_end_with_collapsed_boxes(
    objective: Objective, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    run(
        clip_folder, photo_folder, tmp_path / "out", steps=60, batch_size=8, eval_every=0, save_every=100,
        objective=objective, learning_rate=1e-3, fresh_learning_rate=0.1, box_learning_rate=0.05,
    )  # fmt: skip
    final = lines(tmp_path / "out")[-1]
    assert final["eval_box_size"] <= 1.0
    assert final["eval_box_outside"] == 0.0
    assert final["eval_box_coverage"] > 0.05  # 0.1 and a little, by the number of threads


def test_the_script_answers_bad_input_with_one_sentence_and_code_two(clip_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(clip_folder, tmp_path / "nowhere", tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
