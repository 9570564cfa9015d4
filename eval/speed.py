"""Cost of the sparse encoder against the dense one: latency, parameters, MACs, in one process on random weights.

    python eval/speed.py --threads 1 --batch-sizes 1 8

Both sides run interleaved at the same dtype and thread count; the medians and their ratio are what to read. On two cores of a
2.5 GHz Xeon with one thread it takes about five minutes.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sfvlm import SparseFormerModel, preset
from sfvlm.cli import run, say
from sfvlm.controls import macs
from sfvlm.files import write_text


@dataclass(frozen=True)
class SpeedCommand:
    """Time the CLIP-large preset (64 tokens with the class token, 224 px) against CLIP ViT-L/14-336 (577 tokens)."""

    batch_sizes: tuple[int, ...] = (1, 8)
    """Photos at once."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 5
    """Timed runs of each side."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both sides."""
    out: Path | None = None
    """Also write JSON there."""


def dense_clip_large() -> torch.nn.Module:
    """openai/clip-vit-large-patch14-336's vision tower with random weights, on fused attention."""
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768, hidden_act="quick_gelu",
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return CLIPVisionModelWithProjection(config).eval()


def interleaved(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of each action, taken in turns after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - start)
    return seconds


@torch.inference_mode()
def measure(command: SpeedCommand) -> None:
    """Times both sides at every batch size and prints a table."""
    torch.set_num_threads(command.threads)
    dtype = getattr(torch, command.dtype)
    dense, sparse = dense_clip_large().to(dtype), SparseFormerModel(preset("sparseformer-clip-large")).eval().to(dtype)
    sides = {"CLIP ViT-L/14-336": (dense, 336), "sparseformer-clip-large": (sparse, 224)}
    rows = []
    for name, (model, size) in sides.items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        rows.append({"model": name, "parameters": parameters, "macs": macs(model.float(), size)})
        model.to(dtype)
        say(f"{name:<26}{parameters / 1e6:8.1f} M parameters {rows[-1]['macs'] / 1e9:8.2f} GMACs")
    for batch in command.batch_sizes:
        pixels = {name: torch.randn(batch, 3, size, size, dtype=dtype) for name, (_, size) in sides.items()}
        actions = {name: (lambda model=model, photos=pixels[name]: model(photos)) for name, (model, _) in sides.items()}
        medians = {}
        for row, (name, seconds) in zip(rows, interleaved(actions, command.repeats).items(), strict=True):
            medians[name] = statistics.median(seconds)
            row[f"seconds_batch_{batch}"] = seconds
            say(
                f"batch {batch:<3} {name:<26}{medians[name] * 1000:9.0f} ms  ({min(seconds) * 1000:.0f} ... {max(seconds) * 1000:.0f})"
            )
        dense_name, sparse_name = sides
        say(f"batch {batch:<3} ratio {medians[dense_name] / medians[sparse_name]:.1f} x")
    if command.out:
        write_text(
            command.out, json.dumps({"threads": command.threads, "dtype": command.dtype, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    run(measure, SpeedCommand)
