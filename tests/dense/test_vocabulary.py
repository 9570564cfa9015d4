"""Open vocabulary: a changed last block is what its authors describe, distances are between boxes, several names are one class."""

import pytest
import torch
import torch.nn.functional as F
from tiny import randomize, tiny_config

from sfvlm.dense.vocabulary import WAYS, Vocabulary, last_block, names_of, nearness, owners, shared_space
from sfvlm.encoder.blocks import Block, Head, block_sizes


@pytest.fixture
def block() -> Block:
    return randomize(Block(*block_sizes(tiny_config())))  # type: ignore[return-value]


def centers(side: int = 3) -> torch.Tensor:
    places = torch.arange(side) + 0.5
    return torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).view(1, -1, 2)


def described(block: Block, hidden: torch.Tensor, way: str, gaussian: torch.Tensor) -> torch.Tensor:
    """The same as their repositories write it: head by head, weights in full."""
    normed = block.norm1(hidden)
    width = hidden.shape[-1] // block.attn.num_heads
    out = []
    for head in range(block.attn.num_heads):
        place = slice(head * width, (head + 1) * width)
        query, key, value = (part[..., place] for part in block.attn.qkv(normed).chunk(3, dim=-1))
        scaled = {
            name: one @ other.mT / width**0.5
            for name, one, other in (("qk", query, key), ("qq", query, query), ("kk", key, key))
        }
        weights = {
            "clip": scaled["qk"].softmax(-1),
            "maskclip": torch.eye(hidden.shape[1]),
            "sclip": scaled["qq"].softmax(-1) + scaled["kk"].softmax(-1),
            "clearclip": scaled["qq"].softmax(-1),
            "naclip": (scaled["kk"] + gaussian).softmax(-1),
        }[way]
        out.append(weights @ value)
    x = block.attn.proj(torch.cat(out, dim=-1))
    if way in ("clip", "maskclip", "sclip"):
        x = x + hidden
        x = x + block.mlp(block.norm2(x))
    return x[:, 1:]


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_last_block_is_what_its_authors_describe(block: Block, way: str):
    hidden, places = torch.randn(2, 10, 64), centers()
    gaussian = torch.zeros(10, 10)
    for one in range(9):
        for other in range(9):
            gaussian[1 + one, 1 + other] = torch.exp(-(places[0, one] - places[0, other]).square().sum() / (2 * 5**2))
    found = last_block(block, hidden, way, places, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(found, described(block, hidden, way, gaussian), rtol=1e-4, atol=1e-5)


def test_unchanged_it_is_the_block_itself(block: Block):
    hidden = torch.randn(1, 10, 64)
    torch.testing.assert_close(last_block(block, hidden, "clip", centers(), 1), block(hidden)[:, 1:])


def test_of_boxes_on_a_grid_distances_are_those_of_its_patches():
    """NACLIP's window, as its repository makes it from a grid: 1 in the middle, less by the distance."""
    near = nearness(centers(5))
    assert near[0].diagonal().eq(1).all()
    assert near[0, 0, 24] == pytest.approx(torch.exp(torch.tensor(-(16 + 16) / 50.0)).item())


def test_an_unknown_way_is_refused(block: Block):
    with pytest.raises(ValueError, match="no way 'magic'"):
        last_block(block, torch.randn(1, 10, 64), "magic", centers(), 1)  # type: ignore[arg-type]


def test_several_names_are_one_class_by_the_best_of_them():
    texts = torch.eye(4)
    vocabulary = Vocabulary(texts, torch.tensor([0, 1, 1, 2]), 3, scale=20.0)
    similarities = vocabulary.similarities(F.normalize(torch.tensor([[0.0, 0.2, 0.9, 0.5]]), dim=1)[:, :, None, None])
    assert vocabulary.decide(similarities).item() == 1


def test_the_best_class_and_its_probability_are_those_of_a_softmax_over_all_names():
    """As SCLIP and NACLIP write it: softmax over names, the greatest of each class's, the greatest class, or the background."""
    similarities, owner = torch.randn(2, 6, 3, 4) / 4, torch.tensor([0, 0, 1, 2, 2, 2])
    probabilities = (10 * similarities).softmax(dim=1)
    by_class = torch.stack([probabilities[:, owner == number].amax(dim=1) for number in range(3)], dim=1)
    expected = by_class.argmax(dim=1)
    expected[by_class.amax(dim=1) < 0.5] = 0
    vocabulary = Vocabulary(torch.eye(6), owner, 3, background=0, threshold=0.5, scale=10.0)
    assert torch.equal(vocabulary.decide(similarities), expected)
    assert (by_class.amax(dim=1) < 0.5).any()


def test_below_the_threshold_lies_the_background():
    vocabulary = Vocabulary(torch.eye(3), torch.arange(3), 3, background=0, threshold=0.5, scale=1.0)
    unsure, sure = torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.0, 0.0, 9.0])
    decided = vocabulary.decide(torch.stack([unsure, sure], dim=1)[None, :, None])
    assert decided.tolist() == [[[0, 2]]]
    with pytest.raises(ValueError, match="no background class"):
        Vocabulary(torch.eye(3), torch.arange(3), 3, threshold=0.5)


def test_names_of_a_class_are_parted_by_commas():
    assert names_of("person, man;woman ,") == ("person", "man", "woman")
    assert owners([("sky",), ("person", "man")])[1].tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="names no class"):
        names_of(" , ")


def test_towers_without_a_space_of_texts_are_refused():
    with pytest.raises(ValueError, match="no projection"):
        shared_space(Head(tiny_config(projection_dim=0)), torch.randn(1, 2, 64))
    with pytest.raises(ValueError, match="pools by attention"):
        shared_space(Head(tiny_config(pooling="attention")), torch.randn(1, 2, 64))
