"""What is read of a host, beside what transformers' own model and processor make of the same files."""

import copy
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import opened, photo, tiny_tower
from tiny_llava import tiny_llama_config, tiny_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from sfvlm.alternatives.towers import reduce_host
from sfvlm.bootstrap.alignment import for_host
from sfvlm.bootstrap.batches import pixels_of
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.run import bootstrap
from sfvlm.bootstrap.targets.interview import Interview
from sfvlm.hosts.facts import dense_tokens, read_host
from sfvlm.hosts.folders import swap_folder
from sfvlm.hosts.host import open_host
from sfvlm.hosts.plan import plan_swap
from sfvlm.hosts.reader import HostReader
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import open_photos
from sfvlm.photos.views import tower_pixels
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config

SQUARE = {"height": 56, "width": 56}
BLOCKS: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
)


def made(vision: Any, strategy: str, layers: Any, image_processor: Any) -> tuple[Any, Any]:
    """A LLaVA of such a tower and its processor, which has as many places as transformers' model fills."""
    tokenizer = tiny_tokenizer()
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=tiny_llama_config(tokenizer).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layers,
        vision_feature_select_strategy=strategy,
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(isinstance(vision, CLIPVisionConfig)),
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval(), processor


@pytest.mark.parametrize("layers", [-2, -1, 1, [-2], [-2, -1], [0, 1]])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_tokens_are_counted_as_the_model_hands_them_on(tower: str, strategy: str, layers: Any) -> None:
    if tower == "clip":
        vision: Any = CLIPVisionConfig(**BLOCKS)
        photos: Any = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE)
    else:
        vision, photos = SiglipVisionConfig(**BLOCKS, vision_use_head=False), SiglipImageProcessor(size=SQUARE)
    model, processor = made(vision, strategy, layers, photos)
    with torch.no_grad():
        (features,) = model.model.get_image_features(
            torch.randn(1, 3, 56, 56), vision_feature_layer=layers, vision_feature_select_strategy=strategy
        ).pooler_output
    facts = read_host(model.config, processor)
    assert facts.tokens == dense_tokens(model.config) == len(features)
    assert facts.reads_cls == (tower == "clip" and strategy == "full")
    assert facts.loses_patch == (tower == "siglip" and strategy == "default")
    ids = processor(text=["<image>"], images=[photo()])["input_ids"][0]
    assert ids.count(processor.image_token_id) == len(features)
    if not facts.loses_patch:
        reader = HostReader(model, processor)
        states = [torch.randn(1, 16 + (tower == "clip"), 32) for _ in range(3)]
        assert reader.select(states, int(tower == "clip")).shape[1] == len(features)


def lossy(folder: Path) -> Path:
    """A LLaVA on SigLIP that reads it as if it had a class token."""
    vision = SiglipVisionConfig(**BLOCKS, vision_use_head=False)
    model, processor = made(vision, "default", -1, SiglipImageProcessor(size=SQUARE))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_host_that_loses_a_patch_is_asked_and_swapped_by_its_own_count_and_not_learned_from(tmp_path: Path) -> None:
    host = open_host(lossy(tmp_path / "host"), device="cpu")
    assert host.token_budget == 15 and len(host.answer([photo()], ["Why?"], max_new_tokens=2)) == 1
    manifest = swap_folder(tmp_path / "host", reduce_host(tmp_path / "host", "average", 4), tmp_path / "out")
    assert manifest["tokens"] == {"before": 15, "after": 4, "of_each": "photo"}
    assert open_host(tmp_path / "out", device="cpu").token_budget == 4
    with pytest.raises(ValueError, match=r"reads 15 of its tower's 16 patches.*set \"full\""):
        HostReader(*opened(tmp_path / "host"))


WAYS = {
    "middle": CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE),
    "squashed": CLIPImageProcessor(size=SQUARE, crop_size=SQUARE),
    "squashed and not cropped": CLIPImageProcessor(size=SQUARE, do_center_crop=False),
    "padded": LlavaImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE, do_pad=True),
    "not padded": LlavaImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE),
    "padding of another kind": CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE, do_pad=True),
    "SigLIP's": SiglipImageProcessor(size=SQUARE),
    "squashed bilinearly": SiglipImageProcessor(size=SQUARE, resample=2),
}


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_a_photo_is_shown_as_the_hosts_processor_shows_it_whatever_a_towers_own_view(name: str, squash: bool) -> None:
    own = WAYS[name]
    model, processor = made(CLIPVisionConfig(**BLOCKS), "default", -2, own)
    facts = read_host(model.config, processor)
    config = tiny_tower(image_mean=list(own.image_mean), image_std=list(own.image_std), squash=squash).config
    assert config.squashes == squash
    for size in ((120, 56), (56, 120), (90, 90)):
        image = render_scene(0, 3, 128).image.resize(size)
        theirs = own(image, return_tensors="pt")["pixel_values"]
        ours = tower_pixels([facts.shown(image, squash)], config, theirs)
        assert (ours - theirs).abs().mean() < 0.02


def test_a_host_whose_photos_no_tower_learns_from_is_not_learned_from() -> None:
    for processor, words in (
        (CLIPImageProcessor(size={"shortest_edge": 80}, crop_size=SQUARE), "size 80 and crop_size 56"),
        (CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE, do_resize=False), "do_resize False"),
    ):
        with pytest.raises(ValueError, match=words):
            HostReader(*made(CLIPVisionConfig(**BLOCKS), "default", -2, processor))


@pytest.mark.parametrize(
    ("photos", "tower", "told"),
    [
        ({}, {}, None),
        ({"resample": 2}, {"resample": "bilinear"}, None),
        ({"resample": 2}, {}, "with resample bilinear, and the tower learned from photos of bicubic"),
        ({}, {"resample": "bilinear"}, "with resample bicubic, and the tower learned from photos of bilinear"),
        ({"size": {"shortest_edge": 64}}, {"crop_pct": 56 / 64}, None),
        ({"size": {"shortest_edge": 64}}, {}, r"with crop_pct 0\.875, and the tower learned from photos of 1\.0"),
        ({}, {"crop_pct": 0.875}, r"with crop_pct 1\.0, and the tower learned from photos of 0\.875"),
        ({"size": SQUARE, "do_center_crop": False}, {}, None),
    ],
)
def test_a_tower_that_learned_from_photos_made_otherwise_is_told_when_it_is_put_in(
    photos: dict[str, Any], tower: dict[str, Any], told: str | None
) -> None:
    shown = CLIPImageProcessor(**({"size": {"shortest_edge": 56}, "crop_size": SQUARE} | photos))
    facts = read_host(*_parts(made(CLIPVisionConfig(**BLOCKS), "default", -2, shown)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan_swap(facts, tiny_tower(4, **tower).config)
    assert len(said) == (told is not None)
    assert told is None or re.search(told, str(said[0].message))


def test_a_filter_that_is_none_of_pillows_is_refused() -> None:
    model, processor = made(CLIPVisionConfig(**BLOCKS), "default", -2, WAYS["middle"])
    photos = copy.copy(processor.image_processor)
    photos.resample = 17
    processor.image_processor = photos
    with pytest.raises(ValueError, match="has resample 17, which is none of Pillow's filters"):
        read_host(model.config, processor)


def _parts(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return pair[0].config, pair[1]


@pytest.mark.parametrize(
    ("name", "value"), [("do_rescale", False), ("rescale_factor", 1 / 127.5), ("rescale_factor", 1)]
)
def test_photos_of_another_range_are_refused(name: str, value: Any) -> None:
    photos = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE, **{name: value})
    model, processor = made(CLIPVisionConfig(**BLOCKS), "default", -2, photos)
    with pytest.raises(ValueError, match=rf"from 0 \.\.\. 255 to 0 \.\.\. 1 .*{name} {value}"):
        read_host(model.config, processor)


def test_photos_of_another_size_than_the_towers_are_refused() -> None:
    photos = CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    model, processor = made(CLIPVisionConfig(**BLOCKS), "default", -2, photos)
    with pytest.raises(ValueError, match="photos of 42 pixels a side, and its tower reads 56"):
        read_host(model.config, processor)


@pytest.mark.parametrize(
    ("file", "field", "value", "places", "tokens"),
    [
        ("processor_config.json", "patch_size", 8, 49, 16),
        ("processor_config.json", "num_additional_image_tokens", 0, 15, 16),
        ("processor_config.json", "vision_feature_select_strategy", "full", 17, 16),
        ("config.json", "vision_feature_select_strategy", "full", 16, 17),
        ("processor_config.json", "patch_size", None, 0, 16),
    ],
)
def test_a_processor_with_places_for_other_tokens_than_the_model_reads_is_refused_before_it_is_asked(
    file: str, field: str, value: Any, places: int, tokens: int, hosts: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(hosts["llava"], tmp_path / "host")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {field: value}))
    words = (
        rf"places for {places} tokens of a photo \(.*\), and its model reads {tokens} \(vision_feature_select_strategy"
    )
    with pytest.raises(ValueError, match=words):
        open_host(folder, device="cpu")


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_a_tower_is_measured_on_the_pixels_that_its_host_was_asked_about(
    kind: str, hosts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(12):
        render_scene(0, index, 128).image.resize((120, 60)).save(tmp_path / f"{index}.png")
    asked: list[torch.Tensor] = []
    measured: list[torch.Tensor] = []
    pixels = Interview.pixels
    monkeypatch.setattr(Interview, "pixels", lambda self, *of: asked.append(pixels(self, *of)) or asked[-1])
    monkeypatch.setattr(
        "sfvlm.bootstrap.held_back.pixels_of", lambda *of: measured.append(pixels_of(*of)) or measured[-1]
    )
    teacher, host = open_teacher(hosts[kind]), open_host(hosts[kind], device="cpu")
    student, report = inherit(teacher, student_config(teacher.config, num_tokens=4, for_host=True))
    layer = max(read_host(host.model.config, host.processor).layers)
    options = BootstrapOptions(
        steps=1, batch_size=4, workers=0, held_back=1, eval_every=0, cpu=True, host_turns=1,
        objective=for_host(Objective(), layer),
    )  # fmt: skip
    bootstrap(teacher, student, report, open_photos(tmp_path), tmp_path / "out", options, host=host)
    assert len(measured) == 1 and measured[0].shape == asked[-1].shape
    assert (measured[0] - asked[-1]).abs().mean() < 1e-3


def test_the_fact_of_how_photos_are_shown_is_one(hosts: dict[str, Path]) -> None:
    for kind, way in (("llava", "middle"), ("llava_next", "squashed"), ("llava_onevision", "squashed")):
        model, processor = opened(hosts[kind])
        facts = read_host(model.config, processor)
        assert facts.way == way and facts.padding is None
        assert replace(facts, way="padded").padding == facts.mean
