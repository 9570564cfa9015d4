import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sfvlm.encoder import roi


def boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([rows])


def test_refining_by_zero_leaves_a_box_unchanged() -> None:
    box = torch.rand(2, 5, 2)
    box = torch.cat([box, box + torch.rand(2, 5, 2) + 0.1], dim=-1)
    torch.testing.assert_close(roi.refine(box, torch.zeros(2, 5, 4)), box)


def test_refining_moves_by_box_sizes_and_scales_exponentially() -> None:
    moved = roi.refine(boxes((0.2, 0.2, 0.4, 0.6)), torch.tensor([[[1.0, -0.5, torch.log(torch.tensor(2.0)), 0.0]]]))
    torch.testing.assert_close(moved, boxes((0.3, 0.0, 0.7, 0.4)))


def test_a_bounded_delta_stays_in_its_bounds_and_keeps_small_values() -> None:
    delta = torch.tensor([[100.0, -100.0, 100.0, -100.0], [0.01, -0.01, 0.01, -0.01]])
    bounded = roi.bound(delta, 0.5, 0.7)
    assert bounded[0].tolist() == pytest.approx([0.5, -0.5, 0.7, -0.7])
    torch.testing.assert_close(bounded[1], delta[1], atol=1e-4, rtol=0)


def test_confined_boxes_have_centres_on_the_photo_and_are_no_larger_than_it() -> None:
    confined = roi.confine(boxes((-9.0, -9.0, 9.0, 9.0), (3.0, 3.0, 3.2, 3.2), (0.5, 0.5, 0.5, 0.5)))
    assert roi.sizes(confined).max() <= 1.0001
    assert roi.sizes(confined).min() >= 0.0099
    assert ((roi.centers(confined) >= 0) & (roi.centers(confined) <= 1)).all()


def test_tiles_cover_the_photo_once() -> None:
    tiles = roi.tile_layout(7)[None]
    assert roi.coverage(tiles).item() == 1.0
    assert (roi.sizes(tiles)[0].prod(-1).sum() - 1).abs() < 1e-5


@pytest.mark.parametrize(("count", "side"), [(48, 6), (63, 7), (49, 7), (5, 2), (1, 1)])
def test_the_official_layout_is_a_grid_of_half_size_boxes_and_whole_photos(count: int, side: int) -> None:
    layout = roi.overlapping_layout(count)
    assert layout.shape == (count, 4)
    torch.testing.assert_close(roi.sizes(layout[: side * side]), torch.full((side * side, 2), 0.5))
    assert (layout[side * side :] == torch.tensor([0.0, 0.0, 1.0, 1.0])).all()
    if side > 1:
        assert layout[: side * side].min() == 0
        assert layout[: side * side].max() == 1


@pytest.mark.parametrize("count", [1, 5, 48, 49])
def test_layouts_are_on_one_device_whatever_the_default_is(count: int) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        assert roi.overlapping_layout(count).device.type == roi.tile_layout(7).device.type == "cpu"
        assert roi.tile_layout(7, torch.device("cuda")).device.type == "cuda"
        assert roi.cell_boxes(torch.zeros(2, 3, dtype=torch.long), 7).device.type == "cuda"


def test_a_rectangle_without_area_is_refused_unless_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.tensor([[0.5, 0.0, 0.5, 1.0]])
    with pytest.raises(ValueError, match="has no area"):
        roi.focus_frames(flat, 1, 4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert roi.focus_frames(flat, 1, 4).inside == 4


@pytest.mark.parametrize(("old", "new"), [(49, 196), (49, 16), (49, 100), (196, 49)])
def test_resampled_tiles_are_the_tiles_of_the_other_budget(old: int, new: int) -> None:
    tiles = roi.tile_layout(int(old**0.5))
    torch.testing.assert_close(roi.resample_layout(tiles, new), roi.tile_layout(int(new**0.5)))


@pytest.mark.parametrize("count", [1, 7, 16, 48, 50, 63, 100])
def test_any_budget_can_be_resampled(count: int) -> None:
    resampled = roi.resample_layout(roi.overlapping_layout(48), count)
    assert resampled.shape == (count, 4)
    assert resampled.isfinite().all()


def test_the_same_budget_returns_the_learned_boxes_themselves() -> None:
    learned = torch.rand(48, 4)
    assert roi.resample_layout(learned, 48) is learned


def test_points_of_a_unit_box_lie_inside_it() -> None:
    points = roi.place_points(boxes((0.0, 0.0, 1.0, 1.0)), torch.randn(1, 1, 16, 2) * 50)
    assert ((points > -0.5) & (points < 1.5)).all()
    torch.testing.assert_close(points.mean(dim=2), torch.full((1, 1, 2), 0.5))


def test_sampling_a_constant_map_returns_the_constant() -> None:
    points = torch.rand(2, 5, 3, 2) * 3 - 1
    torch.testing.assert_close(roi.sample(torch.full((2, 4, 8, 6), 3.5), points), torch.full((2, 5, 3, 4), 3.5))


def test_sampling_a_ramp_returns_coordinates() -> None:
    height, width = 8, 16
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    ramp = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]
    points = torch.rand(1, 3, 7, 2) * 0.8 + 0.1
    torch.testing.assert_close(roi.sample(ramp, points), points, atol=1e-5, rtol=1e-5)


def test_sampling_half_precision_maps_uses_exact_points() -> None:
    ramp = ((torch.arange(1024) + 0.5) / 1024).expand(1, 1, 2, 1024)
    points = torch.tensor([[[[0.9001, 0.5]]]])
    assert roi.sample(ramp.bfloat16(), points).item() == pytest.approx(0.9, abs=4e-3)


def test_a_box_of_pixels_gives_exactly_its_pixels() -> None:
    pixels = torch.rand(2, 3, 32, 48)
    box = torch.tensor([8 / 48, 16 / 32, 16 / 48, 24 / 32]).expand(2, 1, 4)
    glimpse = roi.sample_glimpses(pixels, box, 8)[:, 0]
    torch.testing.assert_close(glimpse, pixels[:, :, 16:24, 8:16], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_large_box_gives_averages_and_not_single_pixels(factor: int) -> None:
    pixels = torch.rand(1, 3, 16 * factor, 16 * factor)
    glimpse = roi.sample_glimpses(pixels, boxes((0.0, 0.0, 1.0, 1.0)), 16)[:, 0]
    torch.testing.assert_close(glimpse, F.avg_pool2d(pixels, factor), atol=1e-5, rtol=1e-5)


def test_large_and_small_boxes_in_one_photo_do_not_disturb_each_other() -> None:
    pixels = torch.rand(1, 3, 64, 64)
    small, large = (0.125, 0.25, 0.375, 0.5), (0.0, 0.0, 1.0, 1.0)
    together = roi.sample_glimpses(pixels, boxes(small, large), 16)
    torch.testing.assert_close(together[:, :1], roi.sample_glimpses(pixels, boxes(small), 16))
    torch.testing.assert_close(together[:, 1:], roi.sample_glimpses(pixels, boxes(large), 16))
    torch.testing.assert_close(together[:, 0], pixels[:, :, 16:32, 8:24], atol=1e-5, rtol=1e-5)


def test_glimpses_pass_gradients_to_boxes_and_pixels() -> None:
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    box = boxes((0.1, 0.1, 0.9, 0.9)).requires_grad_()
    roi.sample_glimpses(pixels, box, 8).square().sum().backward()
    assert box.grad is not None
    assert box.grad.abs().sum() > 0
    assert pixels.grad is not None


def test_positions_are_encoded_without_gradient_and_tell_boxes_apart() -> None:
    box = torch.rand(1, 2, 4, requires_grad=True)
    encoded = roi.encode_position(box, 64)
    assert encoded.shape == (1, 2, 64)
    assert not encoded.requires_grad
    assert (encoded[0, 0] - encoded[0, 1]).abs().max() > 0.1


def test_coverage_counts_overlap_once() -> None:
    half = boxes((0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 1.0))
    assert roi.coverage(half).item() == 0.5
