"""The examples do what they say, on the shipped models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sfvlm.hosts.host import open_host
from sfvlm.hosts.swap import swap_folder
from sfvlm.zoo.names import resolve

ROOT = Path(__file__).parents[1]


@pytest.mark.reference
@pytest.mark.parametrize("trains_tower", [False, True])
def test_a_swapped_host_is_fine_tuned_saved_and_opened_again(tmp_path: Path, trains_tower: bool) -> None:
    pytest.importorskip("trl")
    swapped, out = tmp_path / "llava-49", tmp_path / "tuned"
    swap_folder(resolve("llava-tiny"), resolve("sparseformer-tiny-49"), swapped)
    flags = ["--model", str(swapped), "--out", str(out), "--steps", "3", "--photos", "12"]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples/finetune_swapped.py"),
            *flags,
            *(["--train-tower"] if trains_tower else []),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before = {name: tensor for file in swapped.glob("*.safetensors") for name, tensor in load_file(file).items()}
    after = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert any("vision_tower" in name for name in changed) == trains_tower
    assert not any("multi_modal_projector" in name for name in changed)
    host = open_host(out, device="cpu")
    image = Image.new("RGB", (300, 200), "red")
    assert host.image_tokens(image) == 49 and host.answer([image], ["Describe the photo."], max_new_tokens=8)[0]
