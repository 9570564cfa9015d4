"""The loop both recipes share: AdamW, warm-up and cosine, a checkpoint every so many steps, resumable."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sfvlm.bootstrap.checkpoints import differences, list_checkpoints, load_checkpoint, save_checkpoint
from sfvlm.bootstrap.metrics_log import MetricsLog
from sfvlm.bootstrap.optimization import rate_at
from sfvlm.util.files import make_folder, write_json


@dataclass(frozen=True)
class Stage:
    """One stretch of training: what is trained, at which peak rate, for how long."""

    name: str
    steps: int
    rates: dict[str, float]  # prefix of parameter names -> peak rate; the longest prefix that fits counts, 0 freezes
    weight_decay: float = 0.05
    warmup: float = 0.05
    save_every: int = 100


def begin(out: Path, recipe: dict[str, Any]) -> None:
    """Makes the folder of a run, which says what all its stages share.

    Raises:
        ValueError: It cannot be made, or holds a run of another recipe; what differs is named.
    """
    make_folder(out)
    path = out / "recipe.json"
    then = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if changes := differences(recipe | then, recipe):
        raise ValueError(f"{out} holds a run of another recipe ({changes}): give another --out, or remove it.")
    write_json(path, recipe)


def train(
    stage: Stage,
    model: nn.Module,
    batches: Callable[[int], Iterator[dict[str, Tensor]]],
    loss_of: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    out: Path,
    device: torch.device,
    settings: dict[str, Any],
) -> None:
    """Trains `model` in place, from the newest checkpoint in `out` if there is one.

    Args:
        stage: Its name is the checkpoints' folder.
        model: Holds everything trained.
        batches: Step -> endless batches from that step on.
        loss_of: Batch -> named parts of the loss, each already weighted; their sum is minimised.
        out: Folder for checkpoints and `STAGE.jsonl`.
        device: Where the batches go.
        settings: What else a checkpoint must have been made with.

    Raises:
        ValueError: The loss is not finite, or the checkpoint is of a stage with other settings.
    """
    groups = _groups(model, stage)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    peaks = [group["lr"] for group in optimizer.param_groups]
    folder = out / "checkpoints" / stage.name
    recipe = {name: value for name, value in asdict(stage).items() if name != "save_every"} | settings
    step = 0
    checkpoints = list_checkpoints(folder)
    if checkpoints:
        tensors, state, then = load_checkpoint(checkpoints[-1], device)
        if changes := differences(recipe | then.get("stage", {}), recipe):
            raise ValueError(f"{checkpoints[-1]} is of another recipe ({changes}): give another --out, or remove it.")
        model.load_state_dict(tensors["model"])
        optimizer.load_state_dict(state)
        step = int(checkpoints[-1].name.rpartition("-")[2])
    trained = [parameter for group in groups for parameter in group["params"]]
    log = MetricsLog(out / f"{stage.name}.jsonl")
    log.rewind(step)
    model.train()
    start, since = time.monotonic(), step
    with tqdm(total=stage.steps, initial=step, desc=stage.name, mininterval=5) as bar:
        for batch in batches(step) if step < stage.steps else ():
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate_at(step, stage)
            parts = loss_of({name: value.to(device) for name, value in batch.items()})
            loss = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(loss):
                raise ValueError(f"The loss of {stage.name} is {loss.item()} at step {step}; lower its rates.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            step += 1
            bar.update()
            if step % 10 == 0 or step == stage.steps:
                values = {name: round(value.item(), 4) for name, value in parts.items()}
                seconds = (time.monotonic() - start) / (step - since)
                log.add({"step": step, **values, "seconds_a_step": round(seconds, 3)})
                bar.set_postfix(values, refresh=False)
            if step % stage.save_every == 0 or step == stage.steps:
                save_checkpoint(
                    folder, step, {"model": model.state_dict()}, optimizer.state_dict(), {"stage": recipe}, keep=1
                )
            if step == stage.steps:
                break
    model.eval()


def _groups(model: nn.Module, stage: Stage) -> list[dict]:
    """Freezes what has no rate; matrices decay, vectors and tables of positions do not."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        fitting = [prefix for prefix in stage.rates if name.startswith(prefix)]
        rate = stage.rates[max(fitting, key=len)] if fitting else 0.0
        parameter.requires_grad_(rate > 0)
        if rate > 0:
            decays = parameter.ndim > 1 and "embedding" not in name
            groups.setdefault((rate, stage.weight_decay if decays else 0.0), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
