import dataclasses
import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hosts import KINDS, PROMPT, logits, opened, photo, tiny_tower
from transformers import AutoConfig, AutoProcessor

from sfvlm import SparseFormerModel
from sfvlm.cli import run
from sfvlm.commands.options.swap import SwapCommand
from sfvlm.commands.swap import swap_command
from sfvlm.hosts.folders import swap_folder, undo_folder
from sfvlm.hosts.named_towers import split_tower
from sfvlm.hosts.swap import swap
from sfvlm.hosts.weights import bytes_hash, parts
from sfvlm.look.sides import open_sides
from sfvlm.zoo.weight_files import open_weights, read_tensors


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower") / "sf49"
    tiny_tower().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def swapped_folder(hosts: dict[str, Path], tower_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swapped") / "llava-49"
    swap_folder(hosts["llava"], tower_folder, out)
    return out


def hashes(folder: Path) -> dict[str, str]:
    weights = open_weights(folder)
    return {part: bytes_hash(read_tensors(weights, names)) for part, names in parts(weights.where).items()}


def test_the_folder_has_the_hosts_bits_and_says_so(hosts: dict[str, Path], swapped_folder: Path) -> None:
    manifest = json.loads((swapped_folder / "swap.json").read_text())
    before, after = hashes(hosts["llava"]), hashes(swapped_folder)
    assert before["vision_tower"] != after["vision_tower"]
    for part, facts in manifest["untouched"].items():
        assert facts["sha256_before"] == facts["sha256_after"] == before[part] == after[part]
    assert manifest["tokens"] == {"before": 16, "after": 49, "of_each": "photo"}
    assert manifest["changed"] == {"LlavaConfig.image_seq_length": [16, 49], "LlavaProcessor.patch_size": [14, 8]}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (swapped_folder / name).read_bytes() == (hosts["llava"] / name).read_bytes()
    config = AutoConfig.from_pretrained(swapped_folder)
    assert config.vision_config.model_type == "sparseformer"
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == config.image_seq_length == 49


def test_both_ways_of_swapping_give_the_same_host(hosts: dict[str, Path], swapped_folder: Path) -> None:
    model, processor = opened(hosts["llava"])
    swap(model, processor, tiny_tower())
    assert torch.equal(logits(*opened(swapped_folder)), logits(model, processor))


def test_half_precision_and_several_weight_files_are_kept(
    hosts: dict[str, Path], tower_folder: Path, tmp_path: Path
) -> None:
    model, processor = opened(hosts["llava"], dtype=torch.float16)
    model.save_pretrained(tmp_path / "host", max_shard_size="40KB")
    processor.save_pretrained(tmp_path / "host")
    assert len(open_weights(tmp_path / "host").files) > 2
    swap_folder(tmp_path / "host", tower_folder, tmp_path / "out")
    before, after = hashes(tmp_path / "host"), hashes(tmp_path / "out")
    assert {part: digest == before[part] for part, digest in after.items()} == {
        "vision_tower": False, "multi_modal_projector": True, "language_model": True,
    }  # fmt: skip
    again, _ = opened(tmp_path / "out")
    assert {parameter.dtype for parameter in again.model.vision_tower.blocks.parameters()} == {torch.float16}
    boxes = SparseFormerModel.from_pretrained(tower_folder).focusing.token_roi.weight
    assert torch.equal(again.model.vision_tower.focusing.token_roi.weight, boxes)


def test_settings_in_the_files_of_older_transformers_are_read_and_replaced(
    hosts: dict[str, Path], tmp_path: Path
) -> None:
    host = tmp_path / "host"
    shutil.copytree(hosts["llava"], host)
    settings = json.loads((host / "processor_config.json").read_text())
    (host / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor")))
    (host / "processor_config.json").write_text(json.dumps(settings))
    swap_folder(host, tiny_tower(image_size=42), tmp_path / "out")
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    model, processor = opened(tmp_path / "out")
    assert processor(text=[PROMPT], images=[photo()], return_tensors="pt")["pixel_values"].shape[-2:] == (42, 42)
    assert logits(model, processor).isfinite().all()
    undo_folder(tmp_path / "out", tmp_path / "again")
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (host / name).read_bytes()


@pytest.mark.parametrize("place", ["processor_config.json", "additional_chat_templates"])
def test_chat_templates_stay_wherever_transformers_keeps_them(
    place: str, hosts: dict[str, Path], tower_folder: Path, tmp_path: Path
) -> None:
    host = shutil.copytree(hosts["llava"], tmp_path / "host")
    if place == "processor_config.json":
        settings = json.loads((host / place).read_text())
        (host / place).write_text(json.dumps(settings | {"chat_template": "{{ 'newer' }}"}))
    else:
        (host / place).mkdir()
        (host / place / "short.jinja").write_text("{{ 'short' }}")
    expected = AutoProcessor.from_pretrained(host).chat_template
    assert expected != AutoProcessor.from_pretrained(hosts["llava"]).chat_template
    swap_folder(host, tower_folder, tmp_path / "out")
    undo_folder(tmp_path / "out", tmp_path / "again")
    for folder in (tmp_path / "out", tmp_path / "again"):
        assert AutoProcessor.from_pretrained(folder).chat_template == expected
    both = open_sides(tmp_path / "out", device="cpu").hosts
    assert [side.processor.chat_template for side in both.values()] == [expected] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_undoing_a_folder_gives_the_dense_host_without_needing_it(
    kind: str, hosts: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(hosts[kind], tmp_path / "host")
    swap_folder(tmp_path / "host", tiny_tower(kind=kind), tmp_path / "out")
    shutil.rmtree(tmp_path / "host")
    undo_folder(tmp_path / "out", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(hosts[kind])
    names = {file.name for file in hosts[kind].iterdir() if file.suffix != ".safetensors"}
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (hosts[kind] / name).read_bytes()
    restored = {file.name for file in (tmp_path / "again").iterdir()} - names
    assert all(name.startswith("model") for name in restored)
    assert torch.equal(logits(*opened(tmp_path / "again")), logits(*opened(hosts[kind])))


def test_undoing_is_refused_when_the_language_model_was_tuned_since(swapped_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(swapped_folder, tmp_path / "tuned")
    file = next(file for file in open_weights(tmp_path / "tuned").files)
    tensors = load_file(file)
    tensors["language_model.lm_head.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="changed after the swap"):
        undo_folder(tmp_path / "tuned", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]
    with pytest.raises(ValueError, match="no swapped host"):
        undo_folder(tmp_path, tmp_path / "again")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("swap.json", "{", "swap.json is no JSON"),
        ("swap.json", "[]", "swap.json holds no JSON object"),
        ("swap.json", "{}", "swap.json is no manifest of a swap: it says nothing of the host"),
        ("swap.json", '{"host": "x"}', "swap.json is no manifest of a swap: it says nothing of the host"),
        ("dense/config.json", None, "no swapped host: it lacks swap.json or dense/config.json"),
        ("model.safetensors.index.json", "{}", "index.json does not list which file holds each tensor"),
    ],
)
def test_undoing_a_damaged_folder_is_refused_and_the_file_is_named(
    file: str, content: str | None, message: str, swapped_folder: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(swapped_folder, tmp_path / "damaged")
    (damaged / file).unlink() if content is None else (damaged / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        undo_folder(damaged, tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_host_that_nobody_can_write_is_copied_to_files_that_one_can(
    hosts: dict[str, Path], tower_folder: Path, tmp_path: Path
) -> None:
    host = shutil.copytree(hosts["llava"], tmp_path / "host")
    (host / "additional_chat_templates").mkdir()
    (host / "additional_chat_templates" / "short.jinja").write_text("{{ 'short' }}")
    for path in sorted(host.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    swap_folder(host, tower_folder, tmp_path / "out")
    undo_folder(tmp_path / "out", tmp_path / "again")
    for folder in (tmp_path / "out", tmp_path / "again"):
        assert (folder / "additional_chat_templates" / "short.jinja").is_file()
        assert all(path.stat().st_mode & 0o200 for path in folder.rglob("*"))


def damaged_host(kind: str, host: Path, folder: Path) -> None:
    """Copies a host and breaks it in the way that `kind` says."""
    shutil.copytree(host, folder)
    config = json.loads((folder / "config.json").read_text())
    if kind == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "unknown":
        config["model_type"] = "vipllava"
    elif kind == "original":
        config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"
    elif kind == "awq":
        config["quantization_config"] = {"quant_method": "awq"}
    elif kind == "layer":
        config["vision_feature_layer"] = "last"
    elif kind == "no object":
        (folder / "config.json").write_text("[]")
    elif kind == "no index":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text("{")
    elif kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif kind == "not normalised":
        settings = json.loads((folder / "processor_config.json").read_text())
        settings["image_processor"] |= {"do_normalize": False, "image_mean": None}
        (folder / "processor_config.json").write_text(json.dumps(settings))
    if kind in ("unknown", "original", "awq", "layer"):
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "model.safetensors cannot be read as safetensors"),
        ("pickled", "holds no model.safetensors"),
        ("no config", "no folder with a config.json"),
        ("unknown", "type 'vipllava'; a tower can be put into llava, llava_next, llava_onevision"),
        ("original", "original llava package's layout"),
        ("awq", "quantised by 'awq'"),
        ("layer", "Field 'vision_feature_layer' expected "),
        ("no object", "config.json holds no JSON object"),
        ("no index", "model.safetensors.index.json is no JSON"),
        ("adapter", "holds an adapter, which would be lost: merge it into its host"),
        ("not normalised", "does not normalise photos"),
        ("tower truncated", "cannot be opened"),
        ("out exists", "exists: choose another one"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_nothing_written(
    kind: str,
    message: str,
    hosts: dict[str, Path],
    tower_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged_host(kind, hosts["llava"], tmp_path / "host")
    shutil.copytree(tower_folder, tmp_path / "tower")
    if kind == "tower truncated":
        weights = tmp_path / "tower" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    if kind == "out exists":
        (tmp_path / "out").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    flags = ["--host", str(tmp_path / "host"), "--tower", str(tmp_path / "tower"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_code:
        run(swap_command, SwapCommand, flags)
    assert exit_code.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_interrupted_swap_leaves_nothing(
    hosts: dict[str, Path], tower_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfvlm.hosts.folders.open_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swap_folder(hosts["llava"], tower_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_swaps_and_undoes(
    hosts: dict[str, Path], tower_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        swap_command,
        SwapCommand,
        [
            "--host",
            str(hosts["llava"]),
            "--tower",
            str(tower_folder),
            "--out",
            str(tmp_path / "a"),
            "--num-tokens",
            "36",
        ],
    )
    assert "36 tokens a photo instead of 16." in capsys.readouterr().out
    assert AutoConfig.from_pretrained(tmp_path / "a").vision_config.budget == 36
    swap_command(SwapCommand(host=str(tmp_path / "a"), out=tmp_path / "b", undo=True))
    assert hashes(tmp_path / "b") == hashes(hosts["llava"])


def test_a_folder_that_exists_is_refused_before_a_host_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(name: str) -> Path:
        raise AssertionError(f"{name} was fetched")

    monkeypatch.setattr("sfvlm.commands.swap.folder_of", fetched)
    with pytest.raises(ValueError, match="exists: choose another one"):
        swap_command(SwapCommand(host="llava-1.5-7b", out=tmp_path))


def test_a_folder_may_have_an_at_sign_in_its_path(tower_folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "me@work" / "sf49", tmp_path / "sf@2"):
        shutil.copytree(tower_folder, path)
        assert split_tower(str(path)) == (str(path), None)
        assert split_tower(f"{path}@36") == (str(path), 36)


def test_the_script_explains_its_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[2] / "scripts" / "swap_llava_tower.py"
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as exit_code:
        runpy.run_path(str(script), run_name="__main__")
    assert not exit_code.value.code
    said = capsys.readouterr().out
    assert all(f"--{field.name.replace('_', '-')}" in said for field in dataclasses.fields(SwapCommand))
