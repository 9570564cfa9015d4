import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_config
from tiny_photos import write_tar

from sfvlm import SparseFormerModel
from sfvlm.bootstrap.alignment import align, for_host
from sfvlm.bootstrap.cache import TeacherCache
from sfvlm.bootstrap.checkpoints import list_checkpoints, save_checkpoint, uninterrupted
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.photos import split_photos
from sfvlm.bootstrap.run import BootstrapOptions, NonFiniteLoss, bootstrap, rate_at
from sfvlm.bootstrap.targets import TeacherTargets
from sfvlm.commands.bootstrap import BootstrapCommand, bootstrap_command
from sfvlm.encoder.folder import open_student
from sfvlm.hosts.host import open_host
from sfvlm.photos.sources import open_photos
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "bootstrap_clip.py"
QUICK = dict(
    steps=6, batch_size=4, workers=0, held_back=2, eval_every=3, save_every=2, log_every=1, cpu=True, learning_rate=1e-3
)


def run(teacher: Path, photos: Path, out: Path, resume: bool = False, stop_after: int | None = None, **changes: object):
    opened = open_teacher(teacher)
    of_student = {name: changes.pop(name) for name in ("focusing", "image_size", "num_tokens") if name in changes}
    tuned_blocks = changes.pop("tuned_blocks", 2)
    student, report = inherit(
        opened, student_config(opened.config, **({"num_tokens": 4, "focusing": "inherited"} | of_student)), tuned_blocks
    )
    options = BootstrapOptions(**(QUICK | changes))
    bootstrap(opened, student, report, open_photos(photos), out, options, resume=resume, stop_after=stop_after)
    return load_file(out / "model.safetensors") if (out / "model.safetensors").exists() else None


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_rates_rise_and_then_fall_to_zero() -> None:
    options = BootstrapOptions(steps=100, warmup=0.1)
    rates = [rate_at(step, options) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


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


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema_decay": 0.9}, {"tune": "lora"}, {"cached_views": 2}, {"cached_views": 2, "focusing": "chosen"}],
)
def test_a_resumed_run_ends_on_the_same_bits(
    changes: dict[str, object], clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    whole = run(clip_folder, photo_folder, tmp_path / "whole", **changes)
    run(clip_folder, photo_folder, tmp_path / "parts", stop_after=3, **changes)
    resumed = run(clip_folder, photo_folder, tmp_path / "parts", resume=True, **changes)
    assert whole is not None
    assert resumed is not None
    assert same(whole, resumed)
    keep = [{k: v for k, v in line.items() if k != "photos_a_second"} for line in lines(tmp_path / "whole")]
    assert keep == [{k: v for k, v in line.items() if k != "photos_a_second"} for line in lines(tmp_path / "parts")]


def command(teacher: Path, photos: Path, out: Path, *more: str) -> list[str]:
    flags = ["--teacher", teacher, "--photos", photos, "--out", out, "--num-tokens", "4", "--batch-size", "4"]
    quick = [
        "--held-back",
        "2",
        "--workers",
        "1",
        "--cpu",
        "--save-every",
        "2",
        "--log-every",
        "1",
        "--eval-every",
        "0",
    ]
    return [sys.executable, str(SCRIPT), *map(str, flags), *quick, *more]


def test_a_killed_run_resumes_to_the_same_bits(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    steps = ("--steps", "40")
    subprocess.run(
        command(clip_folder, photo_folder, tmp_path / "whole", *steps), check=True, env=environment, capture_output=True
    )
    process = subprocess.Popen(
        command(clip_folder, photo_folder, tmp_path / "killed", *steps),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "killed" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert list_checkpoints(tmp_path / "killed" / "checkpoints")
    subprocess.run(
        command(clip_folder, photo_folder, tmp_path / "killed", *steps, "--resume"),
        check=True,
        env=environment,
        capture_output=True,
    )
    assert same(load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "killed/model.safetensors"))


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


def test_other_options_than_the_checkpoints_are_refused_by_name(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    run(clip_folder, photo_folder, tmp_path / "out", stop_after=2)
    with pytest.raises(ValueError, match=r"batch_size: 4 then, 6 now"):
        run(clip_folder, photo_folder, tmp_path / "out", resume=True, batch_size=6)
    with pytest.raises(ValueError, match=r"image_size: 32 then, 48 now"):
        run(clip_folder, photo_folder, tmp_path / "out", resume=True, image_size=48)
    others = shutil.copytree(photo_folder, tmp_path / photo_folder.name)
    (others / "003.png").rename(others / "another.png")
    with pytest.raises(ValueError, match=r"photo_names: \w{64} then, \w{64} now"):
        run(clip_folder, others, tmp_path / "out", resume=True)
    (others / "another.png").rename(others / "003.png")
    for photo in others.iterdir():
        Image.open(photo).rotate(180).save(photo)
    with pytest.raises(ValueError, match=r"photo_samples: .* then, .* now"):
        run(clip_folder, others, tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="continue it with --resume"):
        run(clip_folder, photo_folder, tmp_path / "out")


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


def rewrite_fingerprint(out: Path, **changes: object) -> None:
    """Changes what the newest checkpoint says of how it was made; None: as if written before that was said."""
    state = list_checkpoints(out / "checkpoints")[-1] / "state.json"
    content = json.loads(state.read_text())
    fingerprint = content["fingerprint"] | changes
    content["fingerprint"] = {name: value for name, value in fingerprint.items() if value is not None}
    state.write_text(json.dumps(content))


def test_other_devices_than_the_checkpoints_are_refused(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, photo_folder, tmp_path / "out", stop_after=2)
    rewrite_fingerprint(tmp_path / "out", device="cuda", processes=2)
    with pytest.raises(
        ValueError, match=r"\(device: cuda then, cpu now, processes: 2 then, 1 now\); give the same ones"
    ):
        run(clip_folder, photo_folder, tmp_path / "out", resume=True)
    rewrite_fingerprint(tmp_path / "out", device=None, processes=None)
    run(clip_folder, photo_folder, tmp_path / "out", resume=True)
    assert lines(tmp_path / "out")[-1]["step"] == 6


def test_the_same_layer_counted_from_either_end_gives_the_same_student(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    for focusing in ("chosen", "fresh"):  # the second has fewer blocks than the teacher's four
        trained = [
            run(
                clip_folder, photo_folder, tmp_path / f"{focusing}{layer}", focusing=focusing, steps=3, eval_every=0,
                objective=Objective(tokens=1.0, layer=layer),
            )
            for layer in (-1, 4, -2, 3)
        ]  # fmt: skip
        assert same(trained[0], trained[1]) and same(trained[2], trained[3])
        assert not same(trained[0], trained[2])
    run(
        clip_folder,
        photo_folder,
        tmp_path / "input",
        focusing="chosen",
        steps=1,
        objective=Objective(tokens=1.0, layer=0),
    )


@pytest.mark.parametrize(("focusing", "layer"), [("inherited", 5), ("inherited", -6), ("fresh", 0), ("fresh", -5)])
def test_a_layer_that_teacher_and_student_do_not_share_is_refused(
    focusing: str, layer: int, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    depth = 4 if focusing == "inherited" else 3
    message = f"teacher's 4 blocks and the student's {depth} have hidden states -{depth + 1} to -1 in common"
    objective = Objective(tokens=1.0, layer=layer)
    with pytest.raises(ValueError, match=f"layer is {layer}, and the {message}"):
        run(clip_folder, photo_folder, tmp_path / "out", focusing=focusing, objective=objective)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def without_gradient(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what the optimizer holds and no step's loss depended on."""
    found: list[torch.Size] = []

    class Watching(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:
            found.extend(each.shape for group in self.param_groups for each in group["params"] if each.grad is None)
            super().step(closure)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "AdamW", Watching)
    return found


@pytest.mark.parametrize("focusing", ["inherited", "chosen"])
def test_what_a_host_does_not_read_is_not_trained(
    focusing: Any, hosts: dict[str, Path], photo_folder: Path, tmp_path: Path, without_gradient: list[torch.Size]
) -> None:
    teacher = open_teacher(hosts["llava"])
    depth = teacher.config.num_hidden_layers
    config = student_config(teacher.config, focusing=focusing, num_tokens=4, coarse_blocks=1)
    student, report = inherit(teacher, config, depth)
    objective = for_host(Objective(saliency=0.0), -2)
    options = BootstrapOptions(**(QUICK | dict(steps=1, eval_every=0, host_turns=1, objective=objective)))
    host = open_host(hosts["llava"], device="cpu")
    bootstrap(teacher, student, report, open_photos(photo_folder), tmp_path / "out", options, host=host)
    assert without_gradient == []
    trained = {
        name[:8] for name, each in student.named_parameters() if each.requires_grad and name.startswith("blocks.")
    }
    assert trained == {f"blocks.{number}" for number in range(depth - 1)}  # the host reads layer -2


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize(
    ("focusing", "objective", "frozen"),
    [
        ("chosen", Objective(saliency=0.0), {"focusing.saliency", "focusing.saliency_norm"}),
        ("chosen", Objective(pooled=0.0, tokens=1.0), {"blocks.3"}),
        ("inherited", Objective(pooled=0.0, tokens=1.0), {"blocks.3"}),
        ("inherited", Objective(pooled=0.0, tokens=1.0, layer=1), {"blocks.2", "blocks.3"}),  # the first look has two
        ("fresh", Objective(pooled=0.0, tokens=1.0, layer=-3), {"blocks.1", "blocks.2"}),
        ("inherited", Objective(tokens=1.0), set()),
    ],
)
def test_everything_that_is_trained_gets_a_gradient(
    focusing: str,
    objective: Objective,
    frozen: set[str],
    tune: str,
    clip_folder: Path,
    photo_folder: Path,
    tmp_path: Path,
    without_gradient: list[torch.Size],
) -> None:
    run(
        clip_folder, photo_folder, tmp_path / "out", focusing=focusing, tuned_blocks=3 if focusing == "fresh" else 4,
        objective=objective, tune=tune, steps=1, eval_every=0,
    )  # fmt: skip
    assert without_gradient == []
    rows = json.loads((tmp_path / "out" / "inheritance.json").read_text())["rows"]
    parts = {True: set(), False: set()}
    for row in rows:
        parts[row["trained"]].add(".".join(row["student"].split(".")[:2]))
    assert frozen <= parts[False] - parts[True]
    assert {name for name in parts[False] if name.startswith(("blocks.", "focusing."))} == frozen


TOKENS = Objective(tokens=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=0), "batch_size is 0; it must be at least 1"),
        (dict(log_every=0), "log_every is 0; it must be at least 1"),
        (dict(save_every=0), "save_every is 0; it must be at least 1"),
        (dict(keep_checkpoints=0), "keep_checkpoints is 0; it must be at least 1"),
        (dict(host_turns=0), "host_turns is 0; it must be at least 1"),
        (dict(lora_rank=0), "lora_rank is 0; it must be at least 1"),
        (dict(steps=-1), "steps is -1; it must be at least 0"),
        (dict(clip_grad_norm=-1.0), r"clip_grad_norm is -1\.0; it must be at least 0"),
        (dict(warmup=500), "warmup is 500; it is a share of the steps, from 0 to 1"),
        (dict(budgets=(4, 0)), "num_tokens is 0; a photo needs at least 1 token"),
        (dict(budgets=(4, 17), focusing="chosen"), "num_tokens is 17, and there are 16 patches to choose from"),
        (dict(budgets=(4, 5), objective=TOKENS), "need square budgets; 5 is none: try 4 or 9"),
        (
            dict(objective=Objective(salient="words")),
            "salient is words, and those are a host's answers, whose weight is 0",
        ),
        (
            dict(objective=Objective(answers=1.0, salient="words"), focusing="inherited"),
            "salient is words, and nothing is to guess them: its saliency is 1, the focusing inherited",
        ),
        (dict(budgets=(4, 8), objective=Objective(projected=1.0)), "need square budgets; 8 is none: try 4 or 9"),
        (dict(num_tokens=5, focusing="fresh", objective=TOKENS), "need square budgets; 5 is none: try 4 or 9"),
        (dict(ema_decay=1.5), "ema_decay is 1.5; it is from 0, for no average, to less than 1"),
        (dict(crop_scale=(0.5, 0.1)), "crop_scale is 0.5 to 0.1; shares of a photo rise"),
        (dict(crop_scale=(-1.0, 1.0)), "crop_scale is -1.0 to 1.0; shares of a photo rise"),
        (dict(image_size=48, focusing="chosen"), "image_size is 48; chosen focusing is trained at its teacher's 32"),
    ],
)
def test_what_no_run_can_do_is_refused_by_name_before_anything_is_written(
    changes: dict[str, object], message: str, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(clip_folder, photo_folder, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_chosen_patches_may_be_any_number_that_there_is() -> None:
    BootstrapOptions(budgets=(1, 5, 16), objective=TOKENS).check(tiny_config("chosen", teacher_grid=4))


def test_tensorboard_gets_every_line(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(clip_folder, photo_folder, tmp_path / "out", report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "out" / "sfvlm")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("eval_cosine")] == [3, 6]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteLoss, match=r"at step \d+ \(photos .*png.*begin again with lower rates, in another"):
        run(clip_folder, photo_folder, tmp_path / "out", steps=60, learning_rate=1e30, clip_grad_norm=0.0, save_every=1)
    checkpoints = list_checkpoints(tmp_path / "out" / "checkpoints")
    assert checkpoints
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_gradient_that_is_no_number_stops_the_run_before_its_step(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_root_of_zero(*given: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, parts = align(*given)
        return loss + (0 * loss).sqrt(), parts

    monkeypatch.setattr("sfvlm.bootstrap.run.align", with_a_root_of_zero)
    for clip_grad_norm in (0.0, 1.0):
        with pytest.raises(NonFiniteLoss, match="gradient's norm is nan at step 1 "):
            run(clip_folder, photo_folder, tmp_path / "out", save_every=1, clip_grad_norm=clip_grad_norm)
    assert not list_checkpoints(tmp_path / "out" / "checkpoints")


def test_ctrl_c_on_another_process_stops_this_one_at_the_same_step(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_an_interrupted_one(self: Accelerator, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return tensor + torch.tensor([0.0, 1.0]) if tensor.shape == (2,) and lines_of(tmp_path / "out") == 2 else tensor

    def lines_of(out: Path) -> int:
        return len(lines(out)) if (out / "metrics.jsonl").exists() else 0

    monkeypatch.setattr(Accelerator, "reduce", with_an_interrupted_one)
    with pytest.raises(KeyboardInterrupt):
        run(clip_folder, photo_folder, tmp_path / "out", save_every=100, eval_every=0)
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-00000002"]


def test_a_second_ctrl_c_does_not_lose_what_the_first_one_saves(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def save_under_another(*given: Any) -> Path:
        interrupted()
        return save_checkpoint(*given)

    monkeypatch.setattr(TeacherTargets, "__call__", interrupted)
    monkeypatch.setattr("sfvlm.bootstrap.run.save_checkpoint", save_under_another)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(clip_folder, photo_folder, tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-00000000"]


def test_a_loss_that_is_no_number_on_another_process_stops_this_one_too(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_broken_one(
        _: Accelerator, tensor: torch.Tensor, reduction: str = "sum", scale: float = 1.0
    ) -> torch.Tensor:
        assert reduction in ("sum", "mean")  # whatever else it is asked for, it sums
        return (tensor + 1) / (2 if reduction == "mean" else 1)

    monkeypatch.setattr(Accelerator, "reduce", with_a_broken_one)
    with pytest.raises(NonFiniteLoss, match="at step 1 "):
        run(clip_folder, photo_folder, tmp_path / "out")


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


def test_corrupt_photos_among_good_ones_are_listed_and_the_run_finishes(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photo_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "cut.png").write_bytes((folder / "003.png").read_bytes()[:300])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no photo")
    Image.new("L", (40, 40)).save(folder / "grey.png")
    run(clip_folder, folder, tmp_path / "out", steps=16)
    skipped = {json.loads(line)["key"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()}
    assert {Path(key).name for key in skipped} == {"cut.png", "empty.jpg", "text.jpg"}
    facts = json.loads((tmp_path / "out" / "bootstrap.json").read_text())
    assert facts["photos_skipped"] == 3


def test_labels_that_nobody_needs_and_files_that_are_no_photos_are_passed_over_and_said(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    (folder / "film.mp4").write_bytes(b"no photo")
    (folder / "cut.jpg").write_bytes(b"no photo")
    os.mkfifo(folder / "pipe.jpg")
    photo = (photo_folder / "003.png").read_bytes()
    members = {"a.png": photo, "a.cls": b"cat", "b.png": photo, "b.json": b"[1]", "b.npy": b""}
    shard = write_tar(tmp_path / "labelled.tar", members)
    words = command(clip_folder, folder, tmp_path / "out", "--steps", "16")
    words[words.index("--photos") + 1 : words.index("--out")] = [str(folder), str(shard)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 .mp4 (such as film.mp4)" in done.stdout and "1 .npy (such as b.npy)" in done.stdout
    assert "1 photos cannot be read and were passed over: " in done.stdout
    facts = json.loads((tmp_path / "out" / "bootstrap.json").read_text())
    assert facts["files_passed_over"] == {".mp4": 1, "pipes, sockets and devices": 1, ".npy": 1}
    assert facts["photos_skipped"] == 1


def test_photos_of_which_none_can_be_read_are_refused_before_a_step(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    photos, options = open_photos(folder), BootstrapOptions(**QUICK)
    held_back = [photos.key(index) for index in split_photos(photos, options).held_back.indices]
    for key in held_back:
        (tmp_path / key.replace(folder.name, "photos", 1)).write_bytes(b"no photo")
    with pytest.raises(ValueError, match=f"Of the 2 photos to evaluate on none can be read, {held_back[0]}"):
        run(clip_folder, folder, tmp_path / "out")
    for photo in folder.iterdir():
        photo.write_bytes(b"no photo")
    with pytest.raises(
        ValueError, match=r"Of the 22 photos to train on none can be read, .*\.png among them \(not a JPEG, "
    ):
        run(clip_folder, folder, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


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


def test_all_processes_tell_which_photos_they_skipped(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    broken = {f"broken{number}.jpg" for number in range(8)}
    for name in broken:
        (folder / name).touch()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # With guesses that are not trained, for which two processes would wait if they were left among what is.
    flags = ("--steps", "8", "--workers", "0", "--focusing", "chosen", "--objective.saliency", "0")
    subprocess.run(
        [*launcher, *command(clip_folder, folder, tmp_path / "out", *flags)[1:]],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
    )
    skipped = [json.loads(line)["key"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(Path(key).name for key in skipped) == sorted(broken)
    assert json.loads((tmp_path / "out" / "bootstrap.json").read_text())["photos_skipped"] == 8


def test_a_compiled_student_keeps_more_budgets_than_torch_does_by_default(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, compiled_graphs: list[object]
) -> None:
    budgets = (1, 2, 3, 4)
    options = BootstrapOptions(steps=4, budgets=budgets)
    drawn = {random.Random(f"{options.seed} {step}").choice(budgets) for step in range(options.steps)}
    assert len(drawn) == 3
    run(
        clip_folder, photo_folder, tmp_path / "out", focusing="chosen", budgets=budgets, steps=4, compile=True,
        eval_every=0, save_every=100, batch_size=1,
    )  # fmt: skip
    assert len(compiled_graphs) >= len(drawn) + 1  # and the teacher


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


def test_ctrl_c_waits_for_the_end_of_what_belongs_together() -> None:
    done = []

    def interrupted() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("inside")
        done.append("after")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert done == ["inside"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a process in the background, which Ctrl-C is not meant for
        interrupted()
        assert done == ["inside", "inside", "after"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_teacher_cache_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file cannot be made"):
        TeacherCache(tmp_path / "file", {}, 1, 2, 3)
    TeacherCache(tmp_path / "cache", {}, 1, 2, 3)
    (tmp_path / "cache" / "key.json").write_text("{")
    with pytest.raises(ValueError, match=r"key\.json is no JSON"):
        TeacherCache(tmp_path / "cache", {}, 1, 2, 3)


@pytest.mark.parametrize("focusing", ["inherited", "chosen"])
def test_a_teacher_cache_serves_a_second_run_and_one_of_other_settings_is_refused(
    focusing: str, clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = dict(cached_views=2, teacher_cache=tmp_path / "cache", focusing=focusing, eval_every=0)
    first = run(clip_folder, photo_folder, tmp_path / "first", **shared)
    asked = []
    monkeypatch.setattr(TeacherCache, "put", lambda *batch: asked.append(batch))
    second = run(clip_folder, photo_folder, tmp_path / "second", **shared)
    assert first is not None and second is not None and same(first, second) and not asked
    with pytest.raises(ValueError, match=r"other settings \(photo_names, photo_samples, seed\)"):
        run(clip_folder, photo_folder, tmp_path / "third", seed=1, **shared)


def test_a_teacher_cache_of_fewer_views_or_of_other_photos_of_the_same_names_is_refused(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    shared = dict(teacher_cache=tmp_path / "cache", eval_every=0, steps=1)
    run(clip_folder, photo_folder, tmp_path / "two", cached_views=2, **shared)
    run(clip_folder, photo_folder, tmp_path / "one", cached_views=1, **shared)
    with pytest.raises(ValueError, match=r"shape \(2, 22, 24\) .*, and \(4, 22, 24\) is asked for"):
        run(clip_folder, photo_folder, tmp_path / "four", cached_views=4, **shared)
    others = tmp_path / "others" / photo_folder.name
    others.mkdir(parents=True)
    for photo in photo_folder.iterdir():
        Image.open(photo).rotate(180).save(others / photo.name)
    with pytest.raises(ValueError, match=r"other settings \(photo_samples\)"):
        run(clip_folder, others, tmp_path / "three", cached_views=2, **shared)


def test_the_script_answers_bad_input_with_one_sentence_and_code_two(clip_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(clip_folder, tmp_path / "nowhere", tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_photos_left_out_are_neither_trained_on_nor_held_back(clip_folder: Path, photo_folder: Path, tmp_path: Path):
    photos, names = tmp_path / "photos", tmp_path / "names.txt"
    shutil.copytree(photo_folder, photos)
    (photos / "broken.jpg").write_bytes(b"no photo")  # so that reading it leaves a trace
    names.write_text("broken.jpg\nof-another-folder.jpg\n")
    run(clip_folder, photos, tmp_path / "all", steps=12)
    assert "broken.jpg" in (tmp_path / "all" / "skipped.jsonl").read_text()
    run(clip_folder, photos, tmp_path / "without", steps=12, leave_out=names)
    assert not (tmp_path / "without" / "skipped.jsonl").exists()
    names.write_text("of-another-folder.jpg\n")
    with pytest.raises(ValueError, match="None of the 1 names"):
        run(clip_folder, photos, tmp_path / "none", leave_out=names)
    names.write_text("\n".join(path.name for path in photos.iterdir()))
    with pytest.raises(ValueError, match="none is left to train on"):
        run(clip_folder, photos, tmp_path / "nothing", leave_out=names)


def test_no_more_photos_are_used_than_asked_for(clip_folder: Path, photo_folder: Path, tmp_path: Path):
    run(clip_folder, photo_folder, tmp_path / "few", most_photos=3, held_back=1)
    assert json.loads((tmp_path / "few" / "bootstrap.json").read_text())["photos_read"] == 3
