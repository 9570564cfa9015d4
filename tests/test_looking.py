"""What the Look tab shows, against the tower and the language model themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import opened, photo, tiny_tower

from sfvlm.chat import Host, open_host, user_message
from sfvlm.looking import Looked, answer_attention, as_image, look, seen_view, view_pixels
from sfvlm.sides import with_tower
from sfvlm.views import evaluation_view
from sfvlm.visualize import draw_attention

PHOTO, QUESTION = photo(1, (120, 90)), "What color is the biggest object?"


@pytest.fixture(scope="module")
def host(hosts: dict[str, Path]) -> Host:
    return with_tower(open_host(hosts["llava"], device="cpu"), tiny_tower())


@pytest.fixture(scope="module")
def looked(host: Host) -> Looked:
    return look(host, PHOTO, QUESTION, max_new_tokens=6)


def test_the_answer_is_the_hosts_and_its_words_are_all_of_it(looked: Looked, host: Host) -> None:
    assert [looked.answer] == host.answer([PHOTO], [QUESTION], max_new_tokens=6)
    assert "".join(looked.words).strip() == looked.answer
    assert looked.attention.shape == (len(looked.words), 49)


@torch.no_grad()
def test_the_boxes_are_the_towers(looked: Looked, host: Host) -> None:
    pixels = host.encode([[user_message(QUESTION, 1)]], [[PHOTO]])["pixel_values"]
    output = host.model.model.vision_tower(pixels)
    assert len(looked.boxes) == len(output.token_rois) == len(looked.points)
    for ours, theirs in zip(looked.boxes, output.token_rois, strict=True):
        assert torch.equal(ours, theirs[0])
    assert torch.equal(looked.points[-1], output.sampling_points[-1][0])


@torch.no_grad()
def test_the_attention_is_that_of_the_model_with_its_weights_told(host: Host, hosts: dict[str, Path]) -> None:
    inputs = host.encode([[user_message(QUESTION, 1)]], [[PHOTO]])
    answer = host.processor.tokenizer.encode("red circle", add_special_tokens=False)
    ours = answer_attention(host, inputs, answer, 49)
    model, processor = opened(hosts["llava"], attn_implementation="eager")
    plain = with_tower(Host(model, processor), tiny_tower()).model
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    output = plain(input_ids=ids, pixel_values=inputs["pixel_values"], output_attentions=True)
    weights = torch.stack([layer[0].mean(0) for layer in output.attentions]).mean(0)
    places = inputs["input_ids"][0] == plain.config.image_token_id
    expected = weights[length - 1 : length - 1 + len(answer), :length][:, places]
    torch.testing.assert_close(ours, expected)
    assert ours.sum(-1).min() > 0 and ours.sum(-1).max() < 1


def test_plain_attention_is_used_only_while_it_is_asked_for(looked: Looked, host: Host) -> None:
    assert looked.attention.sum() > 0
    language_model = host.model.model.language_model
    assert language_model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in language_model.modules())


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_tiled_hosts_show_their_first_tile(kind: str, hosts: dict[str, Path]) -> None:
    tiled = with_tower(open_host(hosts[kind], device="cpu"), tiny_tower(kind=kind))
    seen = look(tiled, PHOTO, QUESTION, max_new_tokens=3)
    pixels = tiled.encode([[user_message(QUESTION, 1)]], [[PHOTO]])["pixel_values"]
    assert pixels.ndim == 5 and pixels.shape[1] > 1
    boxes = tiled.model.model.vision_tower(pixels[0, :1]).token_rois[-1]
    assert torch.equal(seen.boxes[-1], boxes[0].detach())
    assert seen.attention.shape[1] == 49 and seen.view.size == (672, 672)
    with pytest.raises(ValueError, match="cuts photos into tiles"):
        view_pixels(tiled, PHOTO, 112)


def test_towers_without_boxes_are_named(hosts: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="CLIPVisionModel, which has no boxes"):
        look(open_host(hosts["llava"], device="cpu"), PHOTO, QUESTION)


def test_a_tower_that_chooses_says_that_its_first_boxes_are_no_tokens(looked: Looked, hosts: dict[str, Path]) -> None:
    host = with_tower(open_host(hosts["llava"], device="cpu"), tiny_tower(4, focusing="chosen"))
    seen = look(host, PHOTO, QUESTION, max_new_tokens=2)
    assert seen.chosen and not looked.chosen
    assert len(seen.boxes[0]) == len(seen.boxes[1]) == 4  # so that their number does not tell


def test_the_view_is_what_the_processor_shows_with_more_pixels(host: Host) -> None:
    pixels = host.processor.image_processor(PHOTO, return_tensors="pt")["pixel_values"]
    assert torch.equal(view_pixels(host, PHOTO, 56), pixels)
    larger = np.asarray(seen_view(host, PHOTO, 90), dtype=np.int16)
    expected = evaluation_view(PHOTO, 90).permute(1, 2, 0).numpy().astype(np.int16)
    assert np.abs(larger - expected).mean() < 2
    assert np.asarray(as_image(host, pixels[0])).shape == (56, 56, 3)


def test_a_click_finds_the_box_around_it(looked: Looked) -> None:
    for token in (0, 24, 48):
        x1, y1, x2, y2 = looked.boxes[0][token].tolist()
        assert looked.token_at(0, (x1 + x2) / 2, (y1 + y2) / 2) == token


def test_the_whole_answer_is_the_mean_of_its_words(looked: Looked) -> None:
    assert torch.equal(looked.given_to(None), looked.attention.mean(0))
    assert torch.equal(looked.given_to(1), looked.attention[1])


def test_attention_lights_its_boxes_and_darkens_the_rest() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    drawn = np.asarray(draw_attention(Image.new("RGB", (80, 80), "gray"), boxes, torch.tensor([0.2, 0.0]), marked=0))
    assert drawn[20, 20].tolist() == [128] * 3
    assert drawn[60, 60].max() < 64
