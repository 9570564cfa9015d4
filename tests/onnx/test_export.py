"""An .onnx file says what its model says, says how it wants to be used, and is whole or absent."""

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from tiny import randomize, tiny_model
from torch import Tensor
from transformers import CLIPImageProcessor

from sfvlm import __version__
from sfvlm.cli import main
from sfvlm.encoder.sparseformer import SparseFormerModel
from sfvlm.onnx import export as onnx_export
from sfvlm.onnx.export import export_onnx
from sfvlm.onnx.session import OnnxEncoder

KINDS = ("inherited", "chosen", "fresh")
NUM_TOKENS = 6
# torch's exporter takes half a minute for each.
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "chosen" else pytest.mark.slow) for kind in KINDS]
)
SIDES = {"inherited": 32, "chosen": 32, "fresh": 48}  # of photos, in pixels


@pytest.fixture(scope="module")
def models() -> dict[str, SparseFormerModel]:
    """With a classifier, with patches that are chosen, and without a class token."""
    changes: dict[str, dict[str, Any]] = {
        "inherited": {"num_hidden_layers": 1, "num_classes": 5},
        "chosen": {"num_hidden_layers": 2},
        "fresh": {"num_hidden_layers": 1, "pooling": "attention"},
    }
    # The fresh stage encodes boxes at up to 128 half waves a photo, and so makes 400 times as much of their rounding.
    scales = {"inherited": 0.1, "chosen": 0.1, "fresh": 0.03}
    made: dict[str, Any] = {
        kind: randomize(tiny_model(kind, **changes[kind]), scale=scales[kind]).eval() for kind in KINDS
    }
    made["fresh"].focusing.token_roi.weight.data += torch.tensor([-0.8, -0.8, 0.8, 0.8])  # they reach outside
    return made


class Files(dict[str, Path]):
    """A file of each kind, written when it is asked for: as by default, by the command, and with everything else."""

    def __init__(self, models: dict[str, SparseFormerModel], folder: Callable[[str], Path]) -> None:
        super().__init__()
        self.models, self.folder = models, folder

    def __missing__(self, kind: str) -> Path:
        path, model = self.folder(kind) / "model.onnx", self.models[kind]
        if kind == "inherited":
            export_onnx(model, path, num_tokens=NUM_TOKENS, layers=(-2, -1))
        elif kind == "chosen":
            saved = str(self.folder("saved"))
            model.save_pretrained(saved)
            main(
                ["onnx", "--model", saved, "--out", str(path), "--num-tokens", str(NUM_TOKENS), "--layers", "-2", "-1"]
            )
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(onnx_export, "LARGEST_FILE", 1000)
                report = export_onnx(
                    model, path, num_tokens=NUM_TOKENS, image_size=SIDES["fresh"], layers=(0, 1), opset=20
                )
            assert report.size == sum(file.stat().st_size for file in path.parent.iterdir())
            assert 0 < report.difference < 1e-4
        self[kind] = path
        return path


@pytest.fixture(scope="module")
def files(models: dict[str, SparseFormerModel], tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(models, tmp_path_factory.mktemp)


def photos(batch: int, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def assert_near(found: np.ndarray, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4 * scale)


@each_kind
@torch.no_grad()
def test_a_file_computes_what_its_model_computes_for_any_number_of_photos(
    kind: str, models: dict[str, SparseFormerModel], files: Files
) -> None:
    encoder = OnnxEncoder(files[kind], threads=1)
    for batch in (1, 3, 8):
        pixels = photos(batch, SIDES[kind])
        found = encoder(pixels)
        expected = models[kind](pixels, num_tokens=NUM_TOKENS, output_hidden_states=True)
        assert_near(found["pooler_output"], expected.pooler_output)
        assert_near(found["last_hidden_state"], expected.last_hidden_state)
        assert_near(found[encoder.layers[-2]], expected.hidden_states[-2])
        assert_near(found[encoder.layers[-1]], expected.hidden_states[-1])
        assert_near(found["token_rois"], expected.token_rois[-1])
        if expected.logits is not None:
            assert_near(found["logits"], expected.logits)
        assert ("logits" in found) == (kind == "inherited")
        assert found["last_hidden_state"].dtype == np.float32 and len(found["last_hidden_state"]) == batch


@torch.no_grad()
def test_some_of_these_points_lie_beyond_the_border(models: dict[str, SparseFormerModel]) -> None:
    first, *_ = models["fresh"](photos(3, SIDES["fresh"]), num_tokens=NUM_TOKENS).sampling_points
    assert (first < 0).any() and (first > 1).any()


@each_kind
def test_points_are_read_by_one_operator_which_repeats_the_border(kind: str, files: Files) -> None:
    nodes = [node for node in onnx.load(files[kind]).graph.node if node.op_type == "GridSample"]
    assert len(nodes) == {"inherited": 4, "chosen": 5, "fresh": 3}[kind]
    for node in nodes:
        settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert settings["padding_mode"] == b"border" and not settings.get("align_corners", 0)


def test_a_file_says_how_it_is_used(files: Files, models: dict[str, SparseFormerModel]) -> None:
    encoder = OnnxEncoder(files["chosen"])
    config = models["chosen"].config
    assert (encoder.image_size, encoder.num_tokens) == (32, NUM_TOKENS)
    assert (encoder.image_mean, encoder.image_std) == (list(config.image_mean), list(config.image_std))
    assert encoder.layers == {-2: "hidden_states.1", -1: "last_hidden_state"}
    said = encoder.metadata
    assert (said["model_type"], said["sfvlm_version"], said["focusing"]) == ("sparseformer", __version__, "chosen")
    assert said["class_tokens"] == "1"
    photo = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    processor: Any = CLIPImageProcessor.from_dict(json.loads(said["preprocessor"]))
    pixels = processor(photo, return_tensors="np")["pixel_values"]
    assert encoder(pixels)["pooler_output"].shape == (1, config.projection_dim)


@each_kind
def test_a_file_knows_nothing_of_the_machine_that_wrote_it(kind: str, files: Files) -> None:
    onnx.checker.check_model(files[kind])
    assert b".py" not in files[kind].read_bytes()


@pytest.mark.slow
def test_opset_and_size_are_free_and_large_weights_lie_beside_the_file(files: Files) -> None:
    assert {path.name for path in files["fresh"].parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert files["fresh"].with_suffix(".onnx.data").stat().st_size > files["fresh"].stat().st_size
    assert [path.name for path in files["inherited"].parent.iterdir()] == ["model.onnx"]
    versions = {kind: onnx.load(files[kind]).opset_import[0].version for kind in KINDS}
    assert versions == {"inherited": 18, "chosen": 18, "fresh": 20}
    encoder = OnnxEncoder(files["fresh"])
    assert encoder.layers == {-2: "hidden_states.0", -1: "last_hidden_state"}
    assert encoder.metadata["class_tokens"] == "0"
    assert encoder.image_size == 48 and json.loads(encoder.metadata["preprocessor"])["size"]["height"] == 48


def test_a_file_that_says_another_thing_than_its_model_is_not_kept(
    files: Files, models: dict[str, SparseFormerModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the exporter had got the last layer wrong by a hundredth."""
    written = torch.onnx.ONNXProgram(onnx_ir.load(files["chosen"]), None)
    monkeypatch.setattr(onnx_export, "trace", lambda *_: written)
    export_onnx(models["chosen"], tmp_path / "model.onnx", num_tokens=NUM_TOKENS, layers=(-2,))
    before = (tmp_path / "model.onnx").read_bytes()
    changed = copy.deepcopy(models["chosen"])
    assert changed.head.projection is not None
    changed.head.projection.weight.data *= 1.01
    with pytest.raises(ValueError, match=r"pooler_output differs .* by 0\.0099 of its .*, and 1e-04 is allowed"):
        export_onnx(changed, tmp_path / "model.onnx", num_tokens=NUM_TOKENS, layers=(-2,))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == before


def test_a_file_never_lies_beside_the_weights_of_another(
    files: Files, models: dict[str, SparseFormerModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "model.onnx", os.replace

    def export() -> None:
        written = torch.onnx.ONNXProgram(onnx_ir.load(files["chosen"]), None)
        monkeypatch.setattr(onnx_export, "trace", lambda *_: written)
        export_onnx(models["chosen"], path, num_tokens=NUM_TOKENS, layers=(-2,))

    def interrupted(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    export()
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "LARGEST_FILE", 1000)
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export()
        assert [each.name for each in tmp_path.iterdir()] == ["model.onnx.data"]
        patch.setattr(os, "replace", replace)
        export()
        assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
        OnnxEncoder(path)
    export()
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    OnnxEncoder(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_tokens": 17}, "num_tokens is 17, and there are 16 patches"),
        ({"num_tokens": 0}, "num_tokens is 0; a photo needs at least 1 token"),
        ({"image_size": 8}, "image_size is 8; a photo needs at least 16 pixels"),
        ({"layers": (-2, 3)}, "There is no layer 3: 2 blocks have hidden states -3 to 2"),
        ({"opset": 17}, "opset is 17; it is one of 18 to 23"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    arguments: dict[str, object], sentence: str, models: dict[str, SparseFormerModel], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        export_onnx(models["chosen"], tmp_path / "model.onnx", **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_only_a_sparseformer_in_float32_is_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A Linear is no SparseFormerModel"):
        export_onnx(torch.nn.Linear(2, 2), tmp_path / "model.onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"is torch\.float16, on cpu, in evaluation; it must be float32"):
        export_onnx(tiny_model().half(), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="in training; it must be"):
        export_onnx(tiny_model().train(), tmp_path / "model.onnx")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_traced(
    models: dict[str, SparseFormerModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(onnx_export, "trace", lambda *_: pytest.fail("traced"))
    with pytest.raises(ValueError, match=f"The folder {tmp_path} cannot be written"):
        export_onnx(models["chosen"], tmp_path / "model.onnx")


def test_the_encoder_refuses_other_files_and_other_photos(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3, 48, 48\); this file reads \(batch, 3, 32, 32\)"):
        OnnxEncoder(files["chosen"])(photos(1, 48))
    with pytest.raises(ValueError, match="There is no file"):
        OnnxEncoder(tmp_path / "absent.onnx")
    (tmp_path / "damaged.onnx").write_bytes(files["chosen"].read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be opened by onnxruntime"):
        OnnxEncoder(tmp_path / "damaged.onnx")
    foreign = onnx.load(files["chosen"])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="was not written by sfvlm"):
        OnnxEncoder(tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="threads is 0"):
        OnnxEncoder(files["chosen"], threads=0)


def test_the_command_ends_bad_input_with_one_sentence(
    models: dict[str, SparseFormerModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(tmp_path / "model")
    models["chosen"].save_pretrained(model)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "clip"}))

    def refused(*flags: str) -> str:
        with pytest.raises(SystemExit) as exit_code:
            main(["onnx", *flags])
        assert exit_code.value.code == 2
        *progress, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and not any("Traceback" in line for line in progress)
        return error

    assert "17, and there are 16" in refused("--model", model, "--out", f"{tmp_path}/a.onnx", "--num-tokens", "17")
    assert "in a folder that exists" in refused("--model", model, "--out", f"{tmp_path}/absent/a.onnx")
    assert "is no SparseFormer folder" in refused("--model", f"{tmp_path}/other", "--out", f"{tmp_path}/a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'sfvlm[onnx]'" in refused("--model", model, "--out", f"{tmp_path}/a.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "other"}
