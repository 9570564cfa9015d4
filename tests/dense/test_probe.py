"""The linear probe: learns what is linear in a map, scores at the mask's size, and refuses what does not fit."""

import pytest
import torch

from sfvlm.dense.probe import IGNORED, LinearHead, ProbeOptions, fit_probe, predict, segmentation_loss


def linear_set(count: int = 24) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Maps whose third feature says the class, and masks of twice their size."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(count, 5, 6, 6, generator=generator)
    masks = [(each[2] > 0).long().repeat_interleave(2, 0).repeat_interleave(2, 1) for each in maps]
    return maps, masks


def test_what_is_linear_in_a_map_is_found():
    maps, masks = linear_set()
    head = fit_probe(maps, masks, 2, ProbeOptions(epochs=30, batch_size=8, learning_rate=0.05, warm_up=5, loss_side=12))
    right = (predict(head, maps, (6, 6)) == torch.stack(masks)[:, ::2, ::2]).float().mean()
    assert right > 0.95


def test_the_same_seed_gives_the_same_head_and_leaves_the_random_state_alone():
    maps, masks = linear_set(8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = [fit_probe(maps, masks, 2, ProbeOptions(epochs=1, loss_side=12)) for _ in range(2)]
    assert torch.equal(heads[0].classifier.weight, heads[1].classifier.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_a_mirrored_photo_is_learned_with_its_mask_mirrored():
    maps, masks = linear_set(8)
    options = ProbeOptions(epochs=12, batch_size=4, learning_rate=0.05, warm_up=5, loss_side=12)
    losses: dict[bool, float] = {}
    for truly in (True, False):
        fit_probe(
            maps,
            masks,
            2,
            options,
            mirrored=maps.flip(3) if truly else maps,
            report=lambda _, loss, truly=truly: losses.__setitem__(truly, loss),
        )
    assert losses[True] < 0.75 * losses[False]


def test_ignored_pixels_count_in_nothing():
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, :2] = IGNORED
    alone = segmentation_loss(logits[:, :, 2:], labels[:, 2:])
    torch.testing.assert_close(segmentation_loss(logits, labels), alone)
    assert segmentation_loss(logits, torch.full_like(labels, IGNORED)) == 0


def test_classes_beyond_the_count_and_a_missing_mask_are_refused():
    maps, masks = linear_set(4)
    with pytest.raises(ValueError, match="class 1, and there are 1"):
        fit_probe(maps, masks, 1)
    with pytest.raises(ValueError, match="4 maps and 3 masks"):
        fit_probe(maps, masks[:3], 2)


def test_the_head_is_batch_norm_and_a_linear_layer_a_cell():
    head = LinearHead(5, 3).eval()
    maps = torch.randn(2, 5, 4, 4)
    cell = head.classifier.weight[:, :, 0, 0] @ (maps[0, :, 1, 2] / (1 + head.norm.eps) ** 0.5)
    torch.testing.assert_close(head(maps)[0, :, 1, 2], cell)
