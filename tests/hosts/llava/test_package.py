"""The adapter for the original `llava` package, on a stand-in for what it does with a tower."""

import json
import pickle
import re
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from tiny_hosts import SIDE, photo, tiny_tower
from torch import nn

from sfvlm.hosts.llava.contract import VisionTower, check_fit
from sfvlm.hosts.llava.package import main, register, unregister
from sfvlm.hosts.llava.tower import LlavaTower, TowerImageProcessor

# Where the package's own code builds, fills and asks a tower: builder.py, llava_arch.py, model/builder.py, serve/cli.py.
STAND_IN = {
    "__init__.py": "from .model import Host\n",
    "model/__init__.py": "try:\n    from .language_model.llava_llama import Host\nexcept:\n    pass\n",
    "model/language_model/llava_llama.py": "from ..llava_arch import Host\n",
    "model/multimodal_encoder/builder.py": '''
import os, types
def build_vision_tower(vision_tower_cfg, **kwargs):
    name = getattr(vision_tower_cfg, "mm_vision_tower", getattr(vision_tower_cfg, "vision_tower", None))
    if os.path.exists(name) or name.startswith("openai"):
        return types.SimpleNamespace(config=types.SimpleNamespace(image_size=int(name.split("-")[-1])), kind="CLIP")
    raise ValueError(f"Unknown vision tower: {name}")
''',
    "model/llava_arch.py": '''
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from .multimodal_encoder.builder import build_vision_tower

class HostConfig(PreTrainedConfig):
    model_type = "stand_in"

class Host(PreTrainedModel):
    config_class = HostConfig
    def __init__(self, config):
        super().__init__(config)
        self.vision_tower = build_vision_tower(config, delay_load=config.delay_load)
        self.mm_projector = nn.Linear(config.mm_hidden_size, 8)
        self.post_init()
''',
    "serve/cli.py": '''
import sys
from llava.model.llava_arch import build_vision_tower
def whoami(): return type(build_vision_tower).__name__
if __name__ == "__main__":
    print(sys.argv[1:], whoami(), sys.modules["__main__"].whoami is whoami)
''',
}  # fmt: skip


def write_package(folder: Path, **changed: str) -> None:
    for name, source in (STAND_IN | changed).items():
        file = folder / "llava" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)


@pytest.fixture
def no_llava() -> Iterator[None]:
    """Whatever is called llava is put aside for a test."""
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "llava"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "llava"]:
        del sys.modules[name]
    sys.modules.update(aside)


@pytest.fixture
def package(no_llava: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The stand-in, imported as a host's code would; gives its llava_arch."""
    write_package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import llava.model.llava_arch as arch

    yield arch
    unregister()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower of 49 tokens, 56 pixels, 2 blocks of width 32; "siglip" in a name means something else to LLaVA-NeXT."""
    out = tmp_path_factory.mktemp("towers") / "from-siglip-openai"
    tiny_tower().save_pretrained(out)
    return out


def arguments(**changed: Any) -> types.SimpleNamespace:
    fields = dict(mm_vision_select_layer=-2, mm_vision_select_feature="patch", mm_hidden_size=32)
    return types.SimpleNamespace(**(fields | changed))


def tower(folder: Path, *, loaded: bool = True, **changed: Any) -> LlavaTower:
    return LlavaTower(f"sfvlm:{folder}", arguments(**changed), delay_load=not loaded)


def pixels(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def host(arch: Any, folder: Path, **changed: Any) -> Any:
    fields = vars(arguments(mm_vision_tower=f"sfvlm:{folder}", delay_load=True))
    return arch.Host(arch.HostConfig(**(fields | changed)))


def changed_config(folder: Path, **fields: Any) -> Path:
    """The same folder, with other fields in its config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def same_weights(module: nn.Module, other: nn.Module) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_tower_has_every_member_of_the_contract(folder: Path) -> None:
    contract: VisionTower = tower(folder)
    names = {name for name in VisionTower.__dict__ if not name.startswith("_")} | set(VisionTower.__annotations__)
    assert {"is_loaded", "load_model", "feature_select", "dummy_feature", "num_patches_per_side"} <= names
    assert not [name for name in names if not hasattr(contract, name)]
    assert (contract.hidden_size, contract.num_patches, contract.num_patches_per_side) == (32, 49, 7)
    assert contract.config.image_size == contract.image_size == SIDE
    assert contract.config.image_size // contract.config.patch_size == 7
    assert contract.dummy_feature.shape == (1, 32)


@torch.no_grad()
def test_it_gives_the_hidden_state_of_the_hosts_layer(folder: Path) -> None:
    states = tiny_tower()(pixels(), output_hidden_states=True).hidden_states
    assert torch.equal(tower(folder)(pixels()), states[-2][:, 1:])
    assert torch.equal(tower(folder, mm_vision_select_layer=-1)(pixels()), states[-1][:, 1:])
    with_class = tower(folder, mm_vision_select_feature="cls_patch")
    assert torch.equal(with_class(pixels()), states[-2])
    assert with_class.num_patches == 50


@torch.no_grad()
def test_a_list_of_photos_gives_a_list(folder: Path) -> None:
    encoder = tower(folder)
    found = encoder([*pixels()])
    assert [tokens.shape for tokens in found] == [(1, 49, 32)] * 2
    torch.testing.assert_close(torch.cat(found), encoder(pixels()), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_patch_drops_no_token_of_a_tower_without_class_token(tmp_path: Path) -> None:
    model = tiny_tower(kind="llava_onevision")
    model.save_pretrained(tmp_path)
    states = model(pixels(), output_hidden_states=True).hidden_states
    assert torch.equal(tower(tmp_path)(pixels()), states[-2])
    assert states[-2].shape[1] == 49


def test_a_delayed_tower_holds_no_parameters(folder: Path) -> None:
    delayed = tower(folder, loaded=False)
    assert not delayed.is_loaded and not list(delayed.parameters()) and not list(delayed.buffers())
    assert (delayed.hidden_size, delayed.num_patches, delayed.config.image_size) == (32, 49, SIDE)
    with pytest.raises(ValueError, match=r"no weights yet: call load_model\(\)"):
        delayed(pixels())


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}, {"lm_head": "cpu", "model": "cpu"}])
def test_loading_takes_every_form_of_device_map_and_happens_once(folder: Path, device_map: Any) -> None:
    delayed = tower(folder, loaded=False)
    delayed.load_model(device_map=device_map)
    encoder = delayed.encoder
    delayed.load_model()
    assert delayed.is_loaded and delayed.encoder is encoder and delayed.dtype == torch.float32
    if device_map != "auto":
        assert delayed.device == torch.device("cpu")


def test_the_output_has_the_dtype_of_the_photos_whatever_the_towers(folder: Path) -> None:
    encoder = tower(folder)
    exact = encoder(pixels())
    assert encoder(pixels().half()).dtype == torch.float16  # the LLM's dtype, with a tower left in float32
    boxes = encoder.encoder.focusing.token_roi.weight.clone()
    encoder.to(device="cpu", dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    found = encoder(pixels())
    assert found.dtype == torch.float32
    assert nn.functional.cosine_similarity(found, exact, dim=-1).min() > 0.99
    assert torch.equal(encoder.encoder.focusing.token_roi.weight, boxes)
    assert boxes.dtype == torch.float32


def test_a_folder_in_half_precision_is_opened_in_float32(tmp_path: Path) -> None:
    tiny_tower().to(torch.bfloat16).save_pretrained(tmp_path)
    assert tower(tmp_path).dtype == torch.float32


def test_gradients_stop_at_a_frozen_tower_and_flow_where_one_is_tuned(folder: Path) -> None:
    encoder = tower(folder)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(pixels().requires_grad_()).requires_grad
    encoder.requires_grad_(True)
    encoder(pixels()).sum().backward()
    assert encoder.encoder.blocks[0].mlp.fc1.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert not encoder(pixels()).requires_grad


def test_it_does_not_rely_on_torchs_initialisation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny_tower()
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)
    monkeypatch.setattr(nn.LayerNorm, "reset_parameters", lambda self: None)
    assert same_weights(tower(folder).encoder, expected)


def test_no_name_of_a_layer_is_one_that_lora_or_an_old_clip_tower_would_hit(folder: Path) -> None:
    names = [name for name, module in tower(folder).named_modules() if isinstance(module, nn.Linear)]
    suffixes = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names and not suffixes & {name.split(".")[-1] for name in names}
    assert all(name.startswith("encoder.") for name in tower(folder).state_dict())


@pytest.mark.parametrize("kind", ["llava", "llava_onevision"])
def test_the_image_processor_has_the_form_that_the_package_reads(tmp_path: Path, kind: str) -> None:
    config = tiny_tower(kind=kind).config
    processor = TowerImageProcessor(config)
    assert type(processor.size) is dict and processor.size["shortest_edge"] == SIDE
    assert processor.crop_size["height"] == processor.crop_size["width"] == SIDE
    assert tuple(int(mean * 255) for mean in processor.image_mean) == tuple(int(m * 255) for m in config.image_mean)
    one = processor.preprocess(photo(), return_tensors="pt")["pixel_values"][0]
    several = processor([photo(), photo(1)], return_tensors="pt")["pixel_values"]
    assert one.shape == (3, SIDE, SIDE)
    assert torch.equal(several[0], one)
    again = pickle.loads(pickle.dumps(processor))  # loader processes of the evaluation scripts get a copy
    assert torch.equal(again([photo()], return_tensors="pt")["pixel_values"][0], one)


def test_the_processor_makes_the_pixels_of_transformers_own(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    clip = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    wide = photo(size=(90, 60))
    ours = tower(folder).image_processor([wide], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, clip([wide], return_tensors="pt")["pixel_values"])


def test_a_tower_aligned_at_another_layer_is_refused() -> None:
    config = tiny_tower().config
    config.aligned_layers = [-2]
    check_fit(types.SimpleNamespace(mm_vision_select_layer=1), config)  # of 2 blocks: the state before the last one
    with pytest.raises(ValueError, match=r"reads layer -1 .* aligned at layer -2"):
        check_fit(types.SimpleNamespace(mm_vision_select_layer=-1), config)


ANYRES = dict(image_aspect_ratio="anyres", image_grid_pinpoints=[[56, 112], [112, 112]])
SPATIAL = ANYRES | dict(mm_patch_merge_type="spatial_unpad")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(mm_hidden_size=1024), "reads tokens 1024 wide, and the tower's are 32 wide"),
        (dict(mm_vision_select_layer=22), "reads layer 22 of its tower, and this one has only 2 blocks"),
        (dict(mm_vision_select_layer=-4), "layer -4"),
        (dict(mm_vision_select_layer=[-2, 6]), "a tower is read at one layer"),
        (dict(mm_vision_select_feature="slicefour_patch"), "gives patch or cls_patch"),
        (dict(s2=True), "several scales"),
        (ANYRES | dict(image_grid_pinpoints=[[84, 56]]), "84 x 56 pixels .* tiles have 56"),
        (ANYRES | dict(image_grid_pinpoints="[(84, 56)]"), "84 x 56 pixels .* tiles have 56"),
        (ANYRES | dict(image_grid_pinpoints="[(56, 56)"), r"image_grid_pinpoints is '\[\(56, 56\)'; it is a list of sizes"),
        (ANYRES | dict(image_grid_pinpoints=[56, 112]), r"image_grid_pinpoints is \[56, 112\]; it is a list of sizes"),
        (SPATIAL | dict(mm_vision_select_feature="cls_patch"), "'patch' alone"),
    ],
)  # fmt: skip
def test_a_tower_that_does_not_fit_is_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tower(folder, loaded=False, **changed)


@pytest.mark.parametrize("changed", [SPATIAL, SPATIAL | dict(image_grid_pinpoints="(1x1),...,(6x6)"), dict(s2=False)])
def test_a_tower_that_fits_is_taken(folder: Path, changed: dict[str, Any]) -> None:
    assert tower(folder, loaded=False, **changed).num_patches == 49


def test_tokens_that_are_no_square_are_refused_where_tiles_need_one(tmp_path: Path) -> None:
    tiny_tower(default_budget=48).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="48 tokens on 56 pixels are none: try 36 or 49"):
        tower(tmp_path, **SPATIAL)
    flat = tower(tmp_path, **ANYRES)
    assert flat(pixels()).shape == (2, 48, 32) and flat.num_patches == 48
    with pytest.raises(ValueError, match="48 tokens on 56 pixels are none"):
        _ = flat.num_patches_per_side


def test_what_is_no_sparseformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        tower(tmp_path, loaded=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(ValueError, match="says 'clip_vision_model'"):
        tower(tmp_path, loaded=False)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        tower(tmp_path, loaded=False)
    with pytest.raises(ValueError, match="neither a path nor a name"):
        LlavaTower("sfvlm:sparseformer-tinny-49", arguments(), delay_load=True)


def test_registration_reaches_every_module_once_and_is_undone(package: Any, folder: Path) -> None:
    builder = sys.modules["llava.model.multimodal_encoder.builder"]
    original, cfg = builder.build_vision_tower, arguments(mm_vision_tower=f"sfvlm:{folder}")
    with pytest.raises(ValueError, match="Unknown vision tower: sfvlm:"):
        package.build_vision_tower(cfg, delay_load=True)
    register()
    once = builder.build_vision_tower
    register()
    assert package.build_vision_tower is builder.build_vision_tower is once is not original
    assert isinstance(package.build_vision_tower(cfg, delay_load=True), LlavaTower)
    assert package.build_vision_tower(arguments(mm_vision_tower="openai/clip-336")).kind == "CLIP"
    with pytest.raises(ValueError, match="Unknown vision tower: elsewhere"):
        package.build_vision_tower(arguments(mm_vision_tower="elsewhere"))
    training = types.SimpleNamespace(vision_tower=f"sfvlm:{folder}", mm_vision_select_layer=-2)
    assert package.build_vision_tower(training).is_loaded

    late = types.ModuleType("late")
    late.build_vision_tower = builder.build_vision_tower
    sys.modules["late"] = late
    try:
        unregister()
        unregister()
        assert package.build_vision_tower is builder.build_vision_tower is late.build_vision_tower is original
    finally:
        del sys.modules["late"]


def test_importing_the_adapter_touches_nothing(package: Any) -> None:
    import importlib

    import sfvlm.hosts.llava.package

    original = package.build_vision_tower
    importlib.reload(sfvlm.llava_package)
    assert package.build_vision_tower is original


def test_a_package_that_is_not_there_is_said_so(no_llava: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llava", None)
    with pytest.raises(ValueError, match="llava is not installed"):
        register()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("from transformers import a_name_of_long_ago", "cannot import name 'a_name_of_long_ago'"),
        ("raise ImportError('of two\\nlines')", "of two lines"),
    ],
)
def test_the_reason_that_the_package_swallows_is_found(
    broken: str, said: str, no_llava: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken += "\nfrom ..llava_arch import Host\n"
    write_package(tmp_path, **{"model/language_model/llava_llama.py": broken})
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"cannot be imported: {said}"):
            register()
        assert not [name for name in sys.modules if name.split(".")[0] == "llava"]


def test_one_tower_for_every_host_rescales_the_tiles(package: Any, folder: Path) -> None:
    register(str(folder))
    plain = arguments(mm_vision_tower="openai/clip-336")
    assert isinstance(package.build_vision_tower(plain, delay_load=True), LlavaTower)
    assert plain.mm_vision_tower == f"sfvlm:{folder}"
    tiled = arguments(
        mm_vision_tower="openai/clip-336", **(SPATIAL | dict(image_grid_pinpoints="[(336, 672), (672, 672)]"))
    )
    package.build_vision_tower(tiled, delay_load=True)
    assert tiled.image_grid_pinpoints == [[SIDE, 2 * SIDE], [2 * SIDE, 2 * SIDE]]
    package.build_vision_tower(tiled, delay_load=True)
    assert tiled.image_grid_pinpoints == [[SIDE, 2 * SIDE], [2 * SIDE, 2 * SIDE]]
    unknown = arguments(mm_vision_tower="elsewhere", **ANYRES)
    with pytest.raises(ValueError, match="configuration cannot be read"):
        package.build_vision_tower(unknown, delay_load=True)
    with pytest.raises(ValueError, match="1024 wide"):
        package.build_vision_tower(arguments(mm_vision_tower="openai/clip-336", mm_hidden_size=1024), delay_load=True)
    register()
    assert package.build_vision_tower(arguments(mm_vision_tower="openai/clip-336")).kind == "CLIP"


@pytest.mark.parametrize("delay_load", [True, False])
def test_a_host_from_disk_gets_the_folders_weights(
    package: Any, folder: Path, tmp_path: Path, delay_load: bool
) -> None:
    """Built eagerly, as LLaVA-NeXT does, transformers would fill the tower with what the checkpoint lacks: noise."""
    register()
    host(package, folder, delay_load=delay_load).save_pretrained(tmp_path / "host")
    opened = package.Host.from_pretrained(tmp_path / "host", low_cpu_mem_usage=True)
    assert not opened.vision_tower.is_loaded
    opened.vision_tower.load_model(device_map="cpu")
    assert same_weights(opened.vision_tower.encoder, tiny_tower())


def test_a_tuned_tower_comes_from_the_checkpoint_only_where_the_config_says_so(
    package: Any, folder: Path, tmp_path: Path
) -> None:
    register()
    model = host(package, folder)
    model.vision_tower.load_model()
    with torch.no_grad():
        model.vision_tower.encoder.blocks[0].mlp.fc1.bias.fill_(5.0)
    tuned = model.vision_tower.encoder
    model.save_pretrained(tmp_path / "host")
    opened = package.Host.from_pretrained(tmp_path / "host")
    opened.vision_tower.load_model()
    assert same_weights(opened.vision_tower.encoder, tiny_tower())
    for fields in (dict(unfreeze_mm_vision_tower=True), dict(mm_tunable_parts="mm_vision_tower,mm_mlp_adapter")):
        opened = package.Host.from_pretrained(changed_config(tmp_path / "host", **fields))
        opened.vision_tower.load_model(device_map="cpu")
        assert same_weights(opened.vision_tower.encoder, tuned)
        assert opened.vision_tower(pixels()).isfinite().all()


def test_a_checkpoint_without_the_tower_it_should_hold_gives_the_folders_never_noise(
    package: Any, folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    register()
    host(package, folder).save_pretrained(tmp_path / "host")
    opened = package.Host.from_pretrained(changed_config(tmp_path / "host", unfreeze_mm_vision_tower=True))
    opened.vision_tower.load_model()
    assert same_weights(opened.vision_tower.encoder, tiny_tower())

    model = host(package, folder)
    model.vision_tower.load_model()
    model.save_pretrained(tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "blocks.1" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    opened = package.Host.from_pretrained(changed_config(tmp_path / "half", unfreeze_mm_vision_tower=True))
    with pytest.raises(ValueError, match=r"holds \d+ of the \d+ tensors .* blocks\.1"):
        opened.vision_tower.load_model()


def test_the_runner_runs_a_module_as_python_does(
    package: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.argv
    main(["llava.serve.cli", "--model-path", "x", "--tower", "kept"])
    assert capsys.readouterr().out == "['--model-path', 'x', '--tower', 'kept'] _Builder True\n"
    main(["--tower", str(folder), "llava.serve.cli"])
    assert package.build_vision_tower.tower == str(folder)
    assert sys.argv is before


@pytest.mark.parametrize("typo", ["sparseformer-tinny-49", "runs/nowhere"])
def test_the_runner_refuses_a_tower_that_is_none_before_it_runs_anything(
    package: Any, typo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--tower", typo, "llava.serve.cli"])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and not printed.out
    assert printed.err.startswith("error: ") and typo in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize("name", ["llava.serve.clip", "llava.server.cli", "llava/serve/cli.py"])
def test_the_runner_names_a_module_that_is_none(package: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: There is no module {name}: give a name such as llava.serve.cli.\n"


@pytest.mark.parametrize(("given", "code"), [([], 2), (["--help"], 0), (["--tower"], 2), (["--towel", "x"], 2)])
def test_the_runner_says_how_it_is_called(given: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(given)
    printed = capsys.readouterr()
    assert stop.value.code == code
    assert "usage: python -m sfvlm.llava_package" in (printed.err if code else printed.out)


def test_the_runner_without_the_package_ends_with_one_sentence(
    no_llava: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "llava", None)
    with pytest.raises(SystemExit) as stop:
        main(["llava.serve.cli"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: The package llava is not installed")


ROOT = Path(__file__).parents[3]
REFERENCE = "python -m pytest -m reference tests/test_llava_reference.py"


def supported() -> Requirement:
    """The transformers that pyproject.toml allows."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(each for each in map(Requirement, wanted) if each.name == "transformers")


def versions_run() -> list[Version]:
    """First column of the table of docs/llava-package.md."""
    page = (ROOT / "docs" / "llava-package.md").read_text()
    table = page.split("| transformers | package | result |\n")[1].split("\n\n")[0]
    return [Version(found) for found in re.findall(r"^\| (\d[\w.]*) \|.*\| passed \|$", table, re.MULTILINE)]


def check_versions(run: list[Version], wanted: Requirement, installed: str) -> None:
    """Fails unless the versions that were run reach from the oldest supported to the installed one."""
    assert run == sorted(run), "The versions that were run are not in order."
    assert all(each in wanted.specifier for each in run), f"A version that was run is none of {wanted}."
    oldest = next(Version(each.version) for each in wanted.specifier if each.operator == ">=")
    assert run[0].release[:2] == oldest.release[:2], (
        f"The oldest supported transformers is {oldest}, and {run[0]} was run."
    )
    now = Version(installed)
    assert now.release[:2] <= run[-1].release[:2], (
        f"transformers {now} is newer than any that the llava package was run with ({run[-1]}): run `{REFERENCE}` with the "
        "package installed, and write the row into docs/llava-package.md."
    )


def test_the_page_says_of_every_transformers_from_the_oldest_to_the_installed_one_that_the_package_ran() -> None:
    check_versions(versions_run(), supported(), transformers.__version__)


@pytest.mark.parametrize(
    ("run", "wanted", "installed", "said"),
    [
        ("5.8.0 5.24.0", ">=5.8,<6", "5.25.0", r"transformers 5.25.0 is newer than .* \(5.24.0\): run `python -m pytest -m reference"),
        ("5.8.0 5.24.0", ">=5.8,<7", "6.0.0", "6.0.0 is newer"),
        ("5.8.0 5.24.0", ">=5.7,<6", "5.24.0", "oldest supported transformers is 5.7, and 5.8.0 was run"),
        ("5.8.0 5.24.0", ">=5.9,<6", "5.24.0", "none of transformers<6,>=5.9"),
        ("5.24.0 5.8.0", ">=5.8,<6", "5.24.0", "not in order"),
    ],
)  # fmt: skip
def test_a_transformers_that_was_not_run_is_named(run: str, wanted: str, installed: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_versions([Version(each) for each in run.split()], Requirement(f"transformers{wanted}"), installed)
    check_versions([Version("5.8.0"), Version("5.24.0")], Requirement("transformers>=5.8,<6"), "5.24.3")
