"""Names and folders of the zoo, with tiny models in the place of the shipped ones."""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from golden_weights import golden_tensor
from safetensors.torch import load_file, save_file
from tiny import randomize, tiny_config, tiny_model
from tiny_llava import tiny_llava
from tiny_server import serving
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
)

from sfvlm.commands.options.zoo import ZooCommand
from sfvlm.commands.zoo import zoo_command
from sfvlm.encoder.configuration import PRESETS
from sfvlm.encoder.folder import open_student
from sfvlm.encoder.showlab import load_official
from sfvlm.teachers.open import open_teacher
from sfvlm.zoo import names as zoo
from sfvlm.zoo.names import ZOO, Entry, resolve, shipped
from sfvlm.zoo.packing import assemble, store_half, store_without_tower

OFFICIAL = dict(
    num_tokens=5, num_focusing_steps=4, mixing_points=32, hidden_size=128, intermediate_size=512,
    num_hidden_layers=2, hidden_act="quick_gelu", pre_norm=False, projection_dim=6, box_shift=None, box_log_scale=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float32 folders as training leaves them: a CLIP and a LLaVA on its vision tower."""
    folder = tmp_path_factory.mktemp("trained")
    llava_folder = tiny_llava(folder)
    llava: Any = LlavaForConditionalGeneration.from_pretrained(llava_folder)
    text = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    text |= dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = CLIPConfig(text_config=text, vision_config=llava.config.vision_config.to_dict(), projection_dim=16)
    torch.manual_seed(1)
    clip = randomize(CLIPModel(config))
    assert isinstance(clip, CLIPModel)
    clip.vision_model.load_state_dict(llava.model.vision_tower.state_dict())
    clip.save_pretrained(folder / "clip")
    AutoTokenizer.from_pretrained(llava_folder).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(
        folder / "clip"
    )
    return {"clip": folder / "clip", "llava": llava_folder}


@pytest.fixture
def weights(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with `clip-tiny` and `llava-tiny`, and an empty cache."""
    folder = tmp_path / "weights"
    monkeypatch.setattr(zoo, "WEIGHTS", folder)
    monkeypatch.setenv("SFVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    store_half(trained["clip"], folder / "clip-tiny")
    store_without_tower(trained["llava"], folder / "clip-tiny", folder / "llava-tiny")
    return folder


@torch.no_grad()
def logits(model: LlavaForConditionalGeneration) -> torch.Tensor:
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, *[3] * 16, 20, 21, 22]]).expand(2, -1)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits


@torch.no_grad()
def test_the_assembled_llava_gives_the_logits_of_the_one_it_was_stored_from(
    weights: Path, trained: dict[str, Path]
) -> None:
    original = LlavaForConditionalGeneration.from_pretrained(trained["llava"])
    rounded = LlavaForConditionalGeneration.from_pretrained(trained["llava"])
    for parameter in rounded.parameters():  # `.half()` would round the rotary frequencies too, which no file holds
        parameter.copy_(parameter.half())
    opened: Any = LlavaForConditionalGeneration.from_pretrained(resolve("llava-tiny"), output_loading_info=True)
    assembled, info = opened
    assert not any(info.values())
    assert torch.equal(logits(assembled), logits(rounded))
    assert 0 < (logits(assembled) - logits(original)).abs().max() < 0.05
    processor = AutoProcessor.from_pretrained(resolve("llava-tiny"))
    assert (
        processor.tokenizer("a red circle").input_ids
        == AutoProcessor.from_pretrained(trained["llava"]).tokenizer("a red circle").input_ids
    )


def test_the_tower_is_stored_once(weights: Path) -> None:
    keys = load_file(weights / "llava-tiny" / "model.safetensors").keys()
    assert keys and not any("vision" in key for key in keys)
    assert not (weights / "clip-tiny" / "tower.json").exists()
    assert not (Path(resolve("llava-tiny")) / "tower.json").exists()
    assert shipped().keys() == {"clip-tiny", "llava-tiny"}
    files = {file: file.stat().st_size for file in (weights / "clip-tiny").iterdir()}
    assert shipped()["clip-tiny"] == sum(files.values())


def test_folders_are_16_bit_and_open_in_float32_unless_asked(weights: Path) -> None:
    for name, kind in (("clip-tiny", CLIPModel), ("llava-tiny", LlavaForConditionalGeneration)):
        folder = Path(resolve(name))
        assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
        assert {parameter.dtype for parameter in kind.from_pretrained(folder).parameters()} == {torch.float32}
        half = kind.from_pretrained(folder, dtype=torch.float16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_a_folder_saved_in_half_precision_opens_in_float32_too(trained: dict[str, Path], tmp_path: Path) -> None:
    CLIPModel.from_pretrained(trained["clip"]).half().save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    store_half(tmp_path / "half", tmp_path / "stored")
    assert CLIPModel.from_pretrained(tmp_path / "stored").dtype == torch.float32


def test_the_shipped_llava_holds_the_shipped_clip_as_a_teacher(weights: Path) -> None:
    inside, alone = open_teacher(resolve("llava-tiny")).model, open_teacher(resolve("clip-tiny")).model
    ours = alone.blocks.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in inside.blocks.state_dict().items())
    assert AutoTokenizer.from_pretrained(resolve("clip-tiny"))("red").input_ids


def test_a_tower_that_differs_in_one_bit_is_refused(trained: dict[str, Path], weights: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(trained["llava"], tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    key = "vision_tower.encoder.layers.0.mlp.fc1.bias"
    tensors[key] = tensors[key].half()
    tensors[key].view(torch.int16)[0] ^= 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of 39 tensors differ, the first encoder\.layers\.0\.mlp\.fc1\.bias"):
        store_without_tower(changed, weights / "clip-tiny", tmp_path / "stored")
    assert not (tmp_path / "stored").exists()


def test_a_tower_stored_in_full_precision_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="store_half first"):
        store_without_tower(trained["llava"], trained["clip"], tmp_path / "stored")


def test_an_upgrade_serves_no_stale_folder(weights: Path) -> None:
    before = Path(resolve("llava-tiny"))
    assert resolve("llava-tiny") == before
    file = weights / "llava-tiny" / "model.safetensors"
    tensors = load_file(file)
    tensors["multi_modal_projector.linear_1.bias"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    after = Path(resolve("llava-tiny"))
    assert after != before
    found = load_file(after / "model.safetensors")["multi_modal_projector.linear_1.bias"]
    assert torch.equal(found, tensors["multi_modal_projector.linear_1.bias"])


def test_another_clip_than_the_llava_was_stored_with_is_refused(weights: Path, tmp_path: Path) -> None:
    file = weights / "clip-tiny" / "model.safetensors"
    tensors = load_file(file)
    tensors["logit_scale"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="stored with another clip-tiny"):
        resolve("llava-tiny")
    assert not list((tmp_path / "cache").iterdir())


def test_several_processes_may_assemble_at_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Barrier(3)

    def assemble_together(*folders: Path) -> None:
        together.wait(timeout=10)
        assemble(*folders)

    monkeypatch.setattr(zoo, "assemble", assemble_together)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(resolve, ["llava-tiny"] * 3))
    assert list((tmp_path / "cache").iterdir()) == list(folders)


def test_numbers_beyond_half_precision_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    large = shutil.copytree(trained["clip"], tmp_path / "large")
    tensors = load_file(large / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = 1e5
    save_file(tensors, large / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"visual_projection\.weight of .* reaches 100000"):
        store_half(large, tmp_path / "stored")
    assert not (tmp_path / "stored").exists()


def test_only_a_model_folder_is_replaced(trained: dict[str, Path], tmp_path: Path) -> None:
    store_half(trained["clip"], tmp_path / "stored")
    (tmp_path / "stored" / "old.txt").write_text("old")
    store_half(trained["clip"], tmp_path / "stored")
    assert not (tmp_path / "stored" / "old.txt").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="no model folder"):
        store_half(trained["clip"], tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.txt").exists()


def test_the_boxes_of_a_sparseformer_stay_exact(weights: Path, tmp_path: Path) -> None:
    model = tiny_model()
    randomize(model)
    model.save_pretrained(tmp_path / "trained")
    store_half(tmp_path / "trained", weights / "sparseformer-tiny-49")
    opened, original = open_student(resolve("sparseformer-tiny-49")).state_dict(), model.state_dict()
    for key, tensor in original.items():
        assert torch.equal(opened[key], tensor if "token_roi" in key else tensor.half().float()), key


def test_paths_and_hub_ids_pass_and_short_names_become_hub_ids(weights: Path, tmp_path: Path) -> None:
    for given in ("a/b", tmp_path, "timm:vit_tiny_patch16_224", "open_clip:ViT-B-16:/x", "./nowhere"):
        assert resolve(given) is given
    assert resolve("clip-l14-336") == "openai/clip-vit-large-patch14-336"
    assert resolve(Path("llava-1.5-7b")) == "llava-hf/llava-1.5-7b-hf"
    assert resolve("clip-tiny") == weights / "clip-tiny"
    (tmp_path / "clip-tiny").mkdir()
    assert resolve("clip-tiny") == "clip-tiny"


@pytest.mark.parametrize(("typed", "meant"), [("clip-tny", "clip-tiny"), ("llava-1.5", "llava-1.5-7b")])
def test_an_unknown_name_gives_the_nearest_ones(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"'{typed}' is neither a path nor a name.*nearest: .*{meant}"):
        resolve(typed)


def test_a_name_whose_weights_are_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="weights of llava-tiny are not in this installation"):
        resolve("llava-tiny")


def test_the_listing_has_every_name_and_fetching_one_gives_a_folder(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo_command(ZooCommand())
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0].lstrip("| ") for line in lines] == list(ZOO)
    assert "in the package, 0." in lines[0] and "not installed" in lines[2]
    zoo_command(ZooCommand("clip-tiny"))
    assert capsys.readouterr().out.strip() == str(weights / "clip-tiny")
    with pytest.raises(ValueError, match="'nobody/nothing' is neither a folder nor a model"):
        zoo_command(ZooCommand("nobody/nothing"))


def test_fetching_a_model_with_pickled_weights_alone_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = ("config.json", "pytorch_model.bin", "tf_model.h5", "open_clip_model.safetensors", "open_clip_model.bin")
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(source: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert source == "openai/clip-vit-large-patch14-336" and not local_files_only
        for name in remote:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).touch()
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    zoo_command(ZooCommand("clip-l14-336"))
    assert capsys.readouterr().out.strip() == str(cache)
    assert {path.name for path in cache.iterdir()} == {"config.json", "pytorch_model.bin"}


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFVLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set SFVLM_CACHE"):
        resolve("llava-tiny")


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFVLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert zoo.cache_folder() == Path("/somewhere/sfvlm")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves CONTENT, half of it under /truncated, and files of `tmp_path`/served; gives the address."""
    monkeypatch.setenv("no_proxy", "*")
    with serving(tmp_path / "served") as address:
        yield address


def test_without_network_the_message_says_which_file_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFVLM_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(ZOO, "sparseformer-clip-base", Entry("release", "", "http://127.0.0.1:1/official.pth"))
    wanted = (
        rf"http://127\.0\.0\.1:1/official\.pth cannot be downloaded \(.*refused.*put it at {tmp_path}/official\.pth"
    )
    with pytest.raises(ValueError, match=wanted):
        resolve("sparseformer-clip-base")


@pytest.fixture
def release(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An official checkpoint small enough for a test, behind the name of a real one; its file."""
    golden = json.loads((Path(__file__).parents[1] / "data" / "showlab_golden.json").read_text())
    config = tiny_config("fresh", **OFFICIAL)
    monkeypatch.setitem(PRESETS, "sparseformer-clip-base", config.to_diff_dict())
    file = tmp_path / "served" / "official.pth"
    file.parent.mkdir()
    torch.save({key: golden_tensor(key, tuple(shape)) for key, shape in golden["shapes"].items()}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(ZOO, "sparseformer-clip-base", Entry("release", "", f"{server}/official.pth", sha256))
    monkeypatch.setenv("SFVLM_CACHE", str(tmp_path / "cache"))
    return file


@torch.no_grad()
def test_a_release_becomes_a_folder_that_computes_as_the_official_file(release: Path, tmp_path: Path) -> None:
    folder = Path(resolve("sparseformer-clip-base"))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load_official(release, "sparseformer-clip-base")(pixels).pooler_output
    ours = copy.deepcopy(open_student(folder))  # away from the mapped file: a product rounds by where its factors lie
    assert torch.equal(ours(pixels).pooler_output, expected)
    assert "official.pth" in (folder / "README.md").read_text()
    shutil.rmtree(tmp_path / "served")
    (tmp_path / "cache" / "official.pth").unlink()
    assert resolve("sparseformer-clip-base") == folder


def test_a_file_that_is_no_such_release_is_named(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "official.pth").write_bytes(b"<html>")
    monkeypatch.setitem(ZOO, "sparseformer-clip-base", Entry("release", "", "http://127.0.0.1:1/official.pth"))
    with (
        pytest.warns(UserWarning, match="unverified"),
        pytest.raises(ValueError, match=r"official\.pth cannot be opened as sparseformer-clip-base.*remove it"),
    ):
        resolve("sparseformer-clip-base")
