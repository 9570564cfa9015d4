"""The guide: starts from the nearest tokens, learns the teacher's map without labels, comes back from its files as it was."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import randomize, tiny_config, tiny_model

import sfvlm.dense.views as views
from sfvlm.dense.guide import Backbone, Guide, GuideConfig, choosing, guided_map, open_guide
from sfvlm.dense.learning import train_guide
from sfvlm.dense.maps import as_map, nearness
from sfvlm.dense.options import GuideOptions
from sfvlm.photos.sources import open_photos
from sfvlm.teachers.open import DenseTransformer, Teacher

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tiny_guide(seed: int = 0, **overrides: object) -> Guide:
    torch.manual_seed(seed)
    return Guide(GuideConfig.of(tiny_config("chosen"), guide_size=16, num_attention_heads=2, **overrides)).eval()


def test_before_any_training_the_map_is_of_the_nearest_tokens():
    model, guide = tiny_model("chosen"), tiny_guide()
    with torch.no_grad():
        output = model(PIXELS)
        made = guide(output, PIXELS, model.head.norm)
        tokens = model.head.norm(output.last_hidden_state[:, 1:])
        torch.testing.assert_close(made, as_map(nearness(output.token_rois[-1], (4, 4)) @ tokens, (4, 4)))


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_every_stage_and_budget_is_read_and_every_part_of_the_guide_gets_a_gradient(focusing: str):
    model, guide = tiny_model(focusing, context_share=1.0), randomize(tiny_guide())
    for budget in (4, 9):
        made = guided_map(model, guide, PIXELS, budget)
        assert made.shape == (2, 64, 4, 4)
        made.square().mean().backward()
    lacking = {name for name, each in guide.named_parameters() if each.grad is None or not each.grad.any()}
    unread = {"inherited": ("context",), "chosen": (), "fresh": ("context", "coarse")}[focusing]
    assert {name for name in lacking if not any(part in name for part in unread)} == set()


def test_other_sizes_and_rectangles_give_maps_of_their_own_cells():
    model, guide = tiny_model("chosen"), randomize(tiny_guide())
    with torch.no_grad():
        assert guided_map(model, guide, torch.randn(1, 3, 24, 48)).shape == (1, 64, 3, 6)
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torch.testing.assert_close(
            guided_map(model, guide, PIXELS, focus=whole), guided_map(model, guide, PIXELS), atol=1e-4, rtol=1e-4
        )
        corner = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
        inside = guided_map(model, guide, PIXELS, focus=corner)
        elsewhere = PIXELS.clone()
        elsewhere[:, :, :, :12] = 0  # far from the rectangle
        torch.testing.assert_close(guided_map(model, guide, elsewhere, focus=corner), inside, atol=1e-4, rtol=1e-4)


def test_the_encoder_chooses_as_the_guide_asks_and_afterwards_as_before():
    model, guide = tiny_model("chosen", context_share=0.0), tiny_guide(context_share=1.0, context_blocks=1)
    with choosing(model, guide), torch.no_grad():
        assert model(PIXELS).context_rois.shape == (2, 4, 4)
    assert model(PIXELS).context_rois is None
    with pytest.raises(ValueError, match="even_share is 2"), choosing(model, tiny_guide(even_share=2.0)):
        pass
    assert model.config.even_share == 1.0


def test_it_comes_back_from_its_folder_and_a_folder_of_other_tensors_is_refused(tmp_path: Path):
    guide, encoder = randomize(tiny_guide()), tiny_config("chosen")
    assert open_guide(tmp_path, encoder) is None
    guide.save_pretrained(tmp_path / "guide")
    again = open_guide(tmp_path, encoder)
    assert again is not None
    for name, tensor in guide.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="of an encoder of 64 features, and this one has 32"):
        open_guide(tmp_path, tiny_config("chosen", hidden_size=32))
    tensors = load_file(tmp_path / "guide/model.safetensors")
    save_file({"other": torch.zeros(1)} | tensors, tmp_path / "guide/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="other"):
        open_guide(tmp_path, encoder)


def test_one_that_is_kept_in_16_bits_computes_in_32(tmp_path: Path):
    randomize(tiny_guide()).half().save_pretrained(tmp_path / "guide")
    again = open_guide(tmp_path, tiny_config("chosen"))
    assert again is not None and again.missing.weight.dtype == torch.float32


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sfvlm.dense.views", "sfvlm.dense.learning"):
        monkeypatch.setattr(f"{module}.CHUNK", 8)
    monkeypatch.setattr(views, "AT_ONCE", 4)


def pieces() -> tuple[Teacher, object]:
    torch.manual_seed(0)
    dense = DenseTransformer(tiny_config("chosen"))
    return Teacher(randomize(dense).eval(), "tiny", "0" * 64), open_photos(["scenes:12"])


OPTIONS = GuideOptions(steps=40, batch_size=4, views=32, budgets=(4, 9), warm_up=5, learning_rate=1e-2, save_every=15)
SMALL = dict(guide_size=16, num_attention_heads=2)


@pytest.mark.usefixtures("small_chunks")
def test_it_learns_the_teachers_map_and_an_interrupted_run_ends_on_the_same_bits(tmp_path: Path):
    model, (teacher, photos) = tiny_model("chosen", context_share=1.0), pieces()
    config = GuideConfig.of(model.config, **SMALL)
    result = train_guide(model, teacher, photos, tmp_path / "whole", OPTIONS, config)
    assert result["guided"] > result["nearest"] + 0.02
    train_guide(model, teacher, photos, tmp_path / "parts", OPTIONS, config, stop_after=17)
    assert not (tmp_path / "parts/guide").exists()
    with pytest.raises(ValueError, match="continue it with --resume"):
        train_guide(model, teacher, photos, tmp_path / "parts", OPTIONS, config)
    train_guide(model, teacher, photos, tmp_path / "parts", OPTIONS, config, resume=True)
    whole, parts = (Guide.from_pretrained(tmp_path / name / "guide").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert json.loads((tmp_path / "whole/guide/guide.json").read_text())["explained"]["guided"] > 0


@pytest.mark.usefixtures("small_chunks")
def test_a_run_of_other_settings_and_a_teacher_of_another_grid_are_refused(tmp_path: Path):
    model, (teacher, photos) = tiny_model("chosen"), pieces()
    config = GuideConfig.of(model.config, **SMALL)
    train_guide(model, teacher, photos, tmp_path, OPTIONS, config, stop_after=1)
    other = GuideOptions(**(OPTIONS.__dict__ | {"seed": 1}))
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        train_guide(model, teacher, photos, tmp_path, other, config, resume=True)
    coarse = Teacher(DenseTransformer(tiny_config("chosen", teacher_grid=2)), "coarse", "")
    with pytest.raises(ValueError, match="on a grid of 2, and the encoder 64 on 4"):
        train_guide(model, coarse, photos, tmp_path / "other", OPTIONS, config)


def test_half_of_the_views_and_those_that_measure_are_at_the_models_own_budget():
    assert views.chunk_budgets(6 * views.CHUNK, (16, 49, 100), 49) == [49, 16, 49, 100, 49, 49]
    with pytest.raises(ValueError, match="views is 200"):
        views.chunk_budgets(200, (16,), 49)


def test_a_backbone_gives_one_map_in_a_tuple():
    model = tiny_model("chosen")
    for guide in (None, tiny_guide()):
        (made,) = Backbone(model, guide)(PIXELS)
        assert made.shape == (2, 64, 4, 4)
