"""Focus: boxes sent into a rectangle of the photo, and what that is asked about."""

import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import randomize, tiny_model
from tiny_hosts import photo, tiny_tower
from torch import Tensor

from sfvlm import SparseFormerModel
from sfvlm.cli import run
from sfvlm.commands.focus import focus_command
from sfvlm.commands.options.focus import FocusCommand
from sfvlm.encoder import roi
from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.template import user_message
from sfvlm.look.focus import ask_crops, ask_scenes, asked_objects, focus_side, focused, padded, scene_cases
from sfvlm.look.sides import with_tower
from sfvlm.photos.scene_texts import Question as SceneQuestion

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
QUADRANT = torch.tensor([[0.5, 0.0, 1.0, 0.5]])  # the upper right one


def _model(focusing: str, **fields: object) -> SparseFormerModel:
    """A model whose boxes move from photo to photo."""
    return randomize(tiny_model(focusing, **fields), scale=0.05)  # type: ignore[return-value]


def _smooth(side: int = 64) -> Tensor:
    """Two photos without fine detail, so that a border that is repeated or continued hardly matters: (2, 3, side, side)."""
    coarse = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=side, mode="bicubic", align_corners=False)


@pytest.mark.parametrize("focusing", ["inherited", "fresh"])
@torch.no_grad()
def test_focus_on_the_whole_photo_changes_nothing(focusing: str) -> None:
    model, pixels = _model(focusing), _smooth(32)
    plain, focus = model(pixels, num_tokens=9), model(pixels, num_tokens=9, focus=WHOLE)
    torch.testing.assert_close(focus.last_hidden_state, plain.last_hidden_state)
    for name in ("token_rois", "sampling_points"):
        assert len(plain[name]) == len(focus[name])
        for ours, theirs in zip(focus[name], plain[name], strict=True):
            torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_a_focused_glimpse_is_the_glimpse_of_the_cut_out_photo() -> None:
    pixels, boxes = torch.rand(1, 3, 64, 64), roi.tile_layout(2)[None]
    frames = roi.focus_frames(QUADRANT, 1, 4)
    ours = roi.sample_glimpses(pixels, roi.on_photo(boxes, frames), 16)
    theirs = roi.sample_glimpses(pixels[:, :, :32, 32:], boxes, 16)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_focus_on_a_quadrant_sees_what_the_cut_out_photo_shows() -> None:
    model, pixels = _model("inherited"), _smooth()
    ours = model(pixels, num_tokens=16, focus=QUADRANT)
    theirs = model(pixels[:, :, :32, 32:], num_tokens=16)
    corner = torch.tensor([0.5, 0.0, 0.5, 0.0])
    for focused_boxes, boxes in zip(ours.token_rois, theirs.token_rois, strict=True):
        torch.testing.assert_close(focused_boxes, corner + boxes / 2, atol=2e-3, rtol=0)
    near = F.cosine_similarity(ours.last_hidden_state, theirs.last_hidden_state, dim=-1)
    elsewhere = model(pixels[:, :, 32:, :32], num_tokens=16).last_hidden_state
    far = F.cosine_similarity(ours.last_hidden_state, elsewhere, dim=-1)
    assert near.min() > 0.995 and far.median() < 0.97


@pytest.mark.parametrize("focusing", ["inherited", "fresh"])
@torch.no_grad()
def test_the_boxes_start_in_the_rectangle(focusing: str) -> None:
    start = _model(focusing)(_smooth(), num_tokens=9, focus=QUADRANT).token_rois[0]
    assert start[..., 0].min() >= 0.5 - 1e-6 and start[..., 3].max() <= 0.5 + 1e-6


@pytest.mark.parametrize("focusing", ["inherited", "fresh"])
@torch.no_grad()
def test_a_share_goes_there_and_the_rest_sees_the_whole_photo(focusing: str) -> None:
    rois = _model(focusing)(_smooth(), num_tokens=13, focus=QUADRANT, focus_share=0.7).token_rois
    assert all(boxes.shape == (2, 13, 4) for boxes in rois)
    inside = (rois[0][..., 0] >= 0.5 - 1e-6) & (rois[0][..., 3] <= 0.5 + 1e-6)
    assert inside[:, -9:].all()  # 0.7 x 13 tokens: the nearest square
    assert roi.coverage(rois[0][:, :4]).min() > 0.8


@torch.no_grad()
def test_each_photo_has_its_own_rectangle() -> None:
    model, pixels = _model("inherited"), _smooth()
    rectangles = torch.cat([QUADRANT, WHOLE])
    both = model(pixels, focus=rectangles).last_hidden_state
    alone = [model(pixels[i : i + 1], focus=rectangles[i : i + 1]).last_hidden_state for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))


@torch.no_grad()
def test_a_tower_stays_focused_inside_the_context_alone() -> None:
    model, pixels = _model("inherited"), _smooth()
    plain, asked = model(pixels).last_hidden_state, model(pixels, focus=QUADRANT).last_hidden_state
    with contextlib.suppress(RuntimeError), model.focused_on(QUADRANT):
        assert torch.equal(model(pixels).last_hidden_state, asked)
        raise RuntimeError
    assert torch.equal(model(pixels).last_hidden_state, plain)
    assert not torch.allclose(plain, asked)


@pytest.mark.parametrize(
    ("focus", "share", "words"),
    [
        (torch.tensor([[0.5, 0.0, 0.5, 0.5]]), 1.0, "has no area"),
        (WHOLE[0], 1.0, r"must be \(2, 4\) or \(1, 4\)"),
        (WHOLE, 0.0, "focus_share is 0.0"),
    ],
)
def test_what_is_no_rectangle_is_refused(focus: Tensor, share: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _model("inherited")(_smooth(), focus=focus, focus_share=share)


@pytest.fixture(scope="module")
def host(hosts: dict[str, Path]) -> Host:
    return with_tower(open_host(hosts["llava"], device="cpu"), tiny_tower())


def test_a_focused_host_answers_as_it_would_about_the_rectangle_cut_out(host: Host) -> None:
    image = photo(2, (224, 224)).convert("RGB")
    messages = [user_message("What color?", 1)]
    plain = "".join(host.stream(messages, [image], max_new_tokens=8))
    with focused(host, image, (0.0, 0.0, 1.0, 1.0)) as (twin, pixels):
        assert pixels.shape[-1] == 56
        assert "".join(twin.stream(messages, [image], max_new_tokens=8, pixel_values=pixels)) == plain
    with focused(host, image, (0.5, 0.0, 1.0, 0.5)) as (twin, pixels):
        assert pixels.shape[-1] == 112  # so that the rectangle has the tower's 56 pixels
        reply = twin.stream(messages, [image], max_new_tokens=8, pixel_values=pixels)
        list(reply)
        assert reply.timings.tokens_per_image == 49
        ours = twin.model.model.vision_tower(pixels).last_hidden_state
    cut = host.processor.image_processor(image.crop((112, 0, 224, 112)), return_tensors="pt")["pixel_values"]
    theirs = host.model.model.vision_tower(cut).last_hidden_state
    assert F.cosine_similarity(ours, theirs, dim=-1).median() > 0.99
    assert "".join(host.stream(messages, [image], max_new_tokens=8)) == plain


def test_the_photos_own_pixels_are_the_limit(host: Host) -> None:
    config = host.model.model.vision_tower.config
    assert focus_side(config, (0.0, 0.0, 0.1, 0.5), 10_000) == 560
    assert focus_side(config, (0.0, 0.0, 0.1, 0.5), 300) == 300
    assert focus_side(config, (0.0, 0.0, 0.001, 0.5), 10_000) == 2048
    with pytest.raises(ValueError, match="has no area"):
        focus_side(config, (0.2, 0.0, 0.2, 0.5), 300)


def test_tiled_hosts_are_refused(hosts: dict[str, Path]) -> None:
    tiled = with_tower(open_host(hosts["llava_next"], device="cpu"), tiny_tower(kind="llava_next"))
    with pytest.raises(ValueError, match="cuts photos into tiles"), focused(tiled, photo(), (0, 0, 0.5, 0.5)):
        pass


def test_room_around_an_object_stays_on_the_photo() -> None:
    assert padded((0.4, 0.4, 0.6, 0.5), margin=0.5) == pytest.approx((0.3, 0.25, 0.7, 0.65))
    assert padded((0.9, 0.0, 1.0, 0.05), margin=0.5) == pytest.approx((0.8, 0.0, 1.0, 0.2))
    assert padded((0.0, 0.0, 1.0, 1.0)) == (0.0, 0.0, 1.0, 1.0)


def test_questions_are_about_the_objects_they_name() -> None:
    cases = scene_cases(20, 5, image_size=64, small_objects=True)
    assert {case.question.category for case in cases} == {"color", "shape", "read", "count"}
    for case in cases:
        thing, *others = case.things
        assert case.is_small and set(case.things) <= set(case.scene.objects)
        assert not others or case.question.category == "count"
        truth = {"color": thing.color, "shape": thing.shape, "read": (thing.text or "").lower()}
        assert case.question.answers[0] == truth.get(case.question.category, str(len(case.things)))
    vague = SceneQuestion("What shape is the mauve object?", "star", "shape")
    assert asked_objects(vague, cases[0].scene.objects) == ()


def test_what_is_counted_lies_in_one_box() -> None:
    counted = [case for case in scene_cases(20, 5, image_size=64) if len(case.things) > 1]
    assert counted
    for case in counted:
        x1, y1, x2, y2 = case.box
        corners = [thing.box for thing in case.things]
        assert all(x1 <= box[0] and y1 <= box[1] and box[2] <= x2 and box[3] <= y2 for box in corners)
        assert (x1, y2) == (min(box[0] for box in corners), max(box[3] for box in corners))


def test_scenes_are_asked_with_focus_without_and_cut_out(host: Host) -> None:
    cases = scene_cases(2, 5, image_size=112)[:3]
    plain, focus = ask_scenes(host, cases, None), ask_scenes(host, cases, 1.0)
    assert len(plain) == len(focus) == len(ask_crops(host, cases)) == 3
    assert plain == host.answer(
        [case.image for case in cases], [case.question.text for case in cases], max_new_tokens=16
    )


def test_the_command_prints_every_way_of_asking(
    swapped_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "focus.json"
    arguments = f"--host {swapped_folder} --scenes 2 --image-size 64 --share 1.0 --out {out} --device cpu"
    run(focus_command, FocusCommand, arguments.split())
    said = capsys.readouterr().out
    for name in ("whole photo", "100% of the tokens", "cut out", "dense, whole photo", "accuracy/larger"):
        assert name in said
    assert out.is_file()


def test_what_cannot_be_measured_is_refused_before_anything_is_asked(
    swapped_folder: Path,
    hosts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("something was asked")

    monkeypatch.setattr("sfvlm.commands.focus.ask_scenes", asked)
    tiled, tower = hosts["llava_next"], tmp_path / "tower"
    tiny_tower(kind="llava_next").save_pretrained(tower)
    for flags, words in (
        (
            f"--host {swapped_folder} --share 1.0 0.0",
            "--share is 0.0; it is a share of the tokens, above 0 and at most 1.",
        ),
        (f"--host {swapped_folder} --share 1.5", "--share is 1.5; it is"),
        (f"--host {tiled} --tower {tower}", "llava_next cuts photos into tiles, and focus is for hosts"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(focus_command, FocusCommand, [*flags.split(), "--scenes", "2", "--image-size", "64", "--device", "cpu"])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and words in said and said.splitlines()[-1].startswith("error: ")


def test_a_view_that_is_no_square_is_cut_as_the_processor_does(host: Host) -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("red", (0, 0, 90, 100))  # outside of the middle square
    with focused(host, wide, (0.0, 0.0, 0.5, 0.5)) as (_, pixels):
        assert pixels.shape[-2:] == (100, 100)
        assert float(pixels[0].std()) < 1.5 and (pixels[0, 1] == pixels[0, 1, 0, 0]).all()
