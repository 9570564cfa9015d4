"""What the Look tab shows, against the tower and the language model themselves."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import opened, photo, tiny_tower

from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.template import user_message
from sfvlm.look.draw import draw_attention
from sfvlm.look.looking import Looked, answer_attention, as_image, look, seen_view, view_pixels, written_words
from sfvlm.look.sides import with_tower
from sfvlm.photos.views import evaluation_view

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
    assert looked.attention is not None and looked.attention.tokens.shape == (len(looked.words), 49)


def test_a_letter_of_several_tokens_is_in_the_words(host: Host) -> None:
    text = "café 狗 \N{DOG FACE} ok"
    reply: Any = SimpleNamespace(tokens=host.processor.tokenizer.encode(text, add_special_tokens=False))
    words = written_words(host, reply)
    assert "".join(words) == text and len(words) == len(reply.tokens)
    assert words[2:5] == ("f", "", "é")
    reply.tokens = reply.tokens[:4]  # cut off within a letter
    assert words[:3] == written_words(host, reply)[:3] and written_words(host, reply)[3] == "\ufffd"


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
    ours, photo = answer_attention(host, inputs, answer, 49)
    model, processor = opened(hosts["llava"], attn_implementation="eager")
    plain = with_tower(Host(model, processor), tiny_tower()).model
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    output = plain(input_ids=ids, pixel_values=inputs["pixel_values"], output_attentions=True)
    weights = torch.stack([layer[0].mean(0) for layer in output.attentions]).mean(0)
    places = inputs["input_ids"][0] == plain.config.image_token_id
    expected = weights[length - 1 : length - 1 + len(answer), :length][:, places]
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(photo, expected.sum(-1))
    assert ours.sum(-1).min() > 0 and ours.sum(-1).max() < 1


def test_plain_attention_is_used_only_while_it_is_asked_for(looked: Looked, host: Host) -> None:
    assert looked.attention is not None and looked.attention.tokens.sum() > 0
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
    assert seen.attention is not None and seen.attention.tokens.shape[1] == 49 and seen.view.size == (672, 672)
    with pytest.raises(ValueError, match="cuts photos into tiles"):
        view_pixels(tiled, PHOTO, 112)


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
@torch.no_grad()
def test_the_attention_to_a_tiled_photo_is_that_to_all_its_tiles(kind: str, hosts: dict[str, Path]) -> None:
    tiled = with_tower(open_host(hosts[kind], device="cpu"), tiny_tower(kind=kind))
    inputs = tiled.encode([[user_message(QUESTION, 1)]], [[PHOTO]])
    answer = tiled.processor.tokenizer.encode("red circle", add_special_tokens=False)
    tokens, photo = answer_attention(tiled, inputs, answer, 49)
    model, processor = opened(hosts[kind], attn_implementation="eager")
    plain = with_tower(Host(model, processor), tiny_tower(kind=kind)).model
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    output = plain(**dict(inputs, input_ids=ids, attention_mask=torch.ones_like(ids)), output_attentions=True)
    weights = torch.stack([layer[0].mean(0) for layer in output.attentions]).mean(0)
    places = inputs["input_ids"][0] == plain.config.image_token_id
    expected = weights[length - 1 : length - 1 + len(answer), :length][:, places]
    torch.testing.assert_close(photo, expected.sum(-1))
    torch.testing.assert_close(tokens, expected[:, :49])
    assert (photo > tokens.sum(-1)).all()


def test_plain_attention_is_computed_for_the_answer_alone(host: Host) -> None:
    layer, head = host.model.model.language_model.layers[0].self_attn, host.model.lm_head
    attended: list[torch.Size] = []
    read: list[int] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output: None if output[1] is None else attended.append(output[1].shape)
        ),
        head.register_forward_hook(lambda _, __, output: read.append(output.shape[1])),
    ]
    inputs = host.encode([[user_message(QUESTION, 1)]], [[PHOTO]])
    answer_attention(host, inputs, [5, 6, 7], 49)
    for hook in hooks:
        hook.remove()
    assert attended == [(1, 2, 3, inputs["input_ids"].shape[1] + 2)]
    assert set(read) == {1}


def test_an_answer_stays_where_its_attention_cannot_be_computed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("sfvlm.look.looking.answer_attention", fail)
    seen = look(host, PHOTO, QUESTION, max_new_tokens=6)
    assert [seen.answer] == host.answer([PHOTO], [QUESTION], max_new_tokens=6) and seen.words
    assert seen.attention is None and seen.failure == "RuntimeError: CUDA out of memory."
    with pytest.raises(ValueError, match="could not be computed: RuntimeError: CUDA out of memory"):
        seen.given_to(None)


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
    swapped = replace(looked, boxes=tuple(each[:, [2, 3, 0, 1]] for each in looked.boxes))
    assert swapped.token_at(0, 0.5, 0.5) == looked.token_at(0, 0.5, 0.5)
    for token in (0, 24, 48):
        x1, y1, x2, y2 = looked.boxes[0][token].tolist()
        assert looked.token_at(0, (x1 + x2) / 2, (y1 + y2) / 2) == token


def test_the_whole_answer_is_the_mean_of_its_words(looked: Looked) -> None:
    assert looked.attention is not None
    tokens, photo = looked.attention
    for (given, share), expected, whole in (
        (looked.given_to(None), tokens.mean(0), photo.mean()),
        (looked.given_to(1), tokens[1], photo[1]),
    ):
        assert torch.equal(given, expected) and share == whole.item()


def test_attention_lights_its_boxes_and_darkens_the_rest() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    drawn = np.asarray(draw_attention(Image.new("RGB", (80, 80), "gray"), boxes, torch.tensor([0.2, 0.0]), marked=0))
    assert drawn[20, 20].tolist() == [128] * 3
    assert drawn[60, 60].max() < 64


def test_attention_lights_a_box_whose_corners_are_swapped() -> None:
    boxes, photo = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), Image.new("RGB", (80, 80), "gray")
    drawn = [draw_attention(photo, each, torch.tensor([0.2, 0.0])) for each in (boxes, boxes[:, [2, 1, 0, 3]])]
    assert drawn[0] == drawn[1]
