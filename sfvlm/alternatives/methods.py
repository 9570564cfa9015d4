"""What each cheap way to few tokens does: a dense transformer and photos to N tokens at every hidden state.

| method | what is kept of a dense tower | source |
|---|---|---|
| `resolution` | the photo made smaller, side x side patches, positions interpolated | arXiv 2010.11929, section 3.2 |
| `larger-patch` | patches so large that side x side fill the photo, kernel resampled | FlexiViT, arXiv 2212.08013 |
| `stride` | of each cell of a side x side grid, the token at its centre | |
| `average` | of each cell of a side x side grid, the mean token | |
| `cls-attention` | tokens the class token attends to, others merged into a few | VisionZip, arXiv 2412.04467 |
| `diversity` | tokens as unlike each other as can be | DivPrune, arXiv 2503.02175 |
| `random` | tokens drawn at random, by a seed that is the photo's | the control of UniPruneBench, arXiv 2511.02650 |
| `merging` | similar tokens merged in the first third of the blocks, the same share in each | ToMe, arXiv 2210.09461 |
| `merging-decreasing` | fewer merged from block to block | ToMe's second schedule |
| `merging-gradual` | as many merged in every block | ToMe's first schedule |

Only the first two and the merging ones spare the dense tower work; the others need all of it, and spare the LLM.

Shapes: B batch, P patches, N tokens kept, D width, d width of a head. Tokens stay in the patches' order, row by row; the
class token, where there is one, stays in front. `read` is the hidden state the host reads, 1 to L.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder.blocks import attention_received
from ..encoder.configuration import SparseFormerConfig
from ..encoder.roi import even_cells
from ..teachers.open import DenseTransformer
from .controls import LargerPatch, LowerResolution, TokenMerging
from .merging import Schedule, merging_counts

# VisionZip keeps 10 of 64 tokens for what it merges, and 54 as they are.
CONTEXTUAL_SHARE = 10 / 64
WORD = 0xFFFFFFFF  # the bits of a random number

States = tuple[Tensor, ...]  # L + 1 of (B, [1 +] N, D)


class Kept(NamedTuple):
    """What is left of a photo.

    Attributes:
        states: L + 1 of (B, [1 +] N, D).
        places: (B, P) which of the tokens that are read each patch became a part of; -1 where it was dropped. None where the
            tokens are a grid of their own, row by row.
    """

    states: States
    places: Tensor | None = None


class Method(NamedTuple):
    """A way to few tokens.

    Attributes:
        run: Dense transformer, photos (B, 3, H, W), number of tokens N, hidden state that is read -> `Kept`.
        on_grid: Whether N must be a square.
        choosing: Whether the tokens are chosen for the hidden state that is read; the others are cut to the same places.
        schedule: How tokens merge from block to block; N of them are there at the hidden state that is read.
    """

    run: Callable[[DenseTransformer, Tensor, int, int], Kept]
    on_grid: bool = False
    choosing: bool = False
    schedule: Schedule | None = None


def lower_resolution(dense: DenseTransformer, pixels: Tensor, count: int, read: int) -> Kept:
    """The photo at so few pixels that its patches are `count`."""
    return Kept(LowerResolution(dense, math.isqrt(count))(pixels).hidden_states)


def larger_patch(dense: DenseTransformer, pixels: Tensor, count: int, read: int) -> Kept:
    """Patches so large that `count` of them fill the photo. Their kernel is made once for a size, without a gradient.

    Compiled code makes it at every call: it cannot tell whether the weights are still those that an earlier one was made of.
    """
    side, image_size = math.isqrt(count), pixels.shape[-1]
    if torch.compiler.is_compiling():
        return Kept(LargerPatch(dense, side, image_size)(pixels).hidden_states)
    made_for = (side, image_size, *map(_version, dense.patch.parameters()))
    kept = dense.__dict__.get("_larger_patch")  # beside its modules: no tensor of its own, and saved with nothing
    if kept is None or kept[0] != made_for:
        with torch.inference_mode(False):  # what is made in that mode can take part in no gradient later
            kept = dense.__dict__["_larger_patch"] = (made_for, LargerPatch(dense, side, image_size))
    return Kept(kept[1](pixels).hidden_states)


def _version(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor's values do, unless they are changed through `.data`."""
    changes = None if tensor.is_inference() else tensor._version  # tensors of that mode do not count
    return tensor.data_ptr(), changes, tensor.dtype, tensor.device


def stride(dense: DenseTransformer, pixels: Tensor, count: int, read: int) -> Kept:
    """The dense token nearest the centre of each cell of an even grid; of two that are as near, the later one."""
    side, (height, width) = math.isqrt(count), grid_of(dense.config, pixels)
    index = even_cells(side, height, width, pixels.device)  # (N,)
    return Kept(take(dense(pixels).hidden_states, index.expand(len(pixels), -1), int(dense.config.has_cls_token)))


def average(dense: DenseTransformer, pixels: Tensor, count: int, read: int) -> Kept:
    """The mean of the dense tokens in each cell of a grid; cells overlap where the grids do not divide."""
    side, grid = math.isqrt(count), grid_of(dense.config, pixels)

    def pool(state: Tensor) -> Tensor:  # (B, [1 +] P, D) -> (B, [1 +] N, D)
        cls, patches = state.split([state.shape[1] - math.prod(grid), math.prod(grid)], dim=1)
        cells = F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, grid), side)
        return torch.cat([cls, cells.flatten(2).transpose(1, 2)], dim=1)

    return Kept(tuple(map(pool, dense(pixels).hidden_states)))


def cls_attention(dense: DenseTransformer, pixels: Tensor, count: int, read: int) -> Kept:
    """The tokens with most of the class token's attention, and the rest merged into a few.

    Attention is that of the block whose output is read, averaged over heads; without a class token, what a token gets
    from all tokens on average. Of N tokens, N * 10 / 64 (rounded) are contextual: evenly spaced ones of the rest, each
    averaged with those of the rest whose keys (averaged over heads) are most like its own, by cosine. The authors' code
    (VisionZip, `clip_encoder.py`) instead adds to a contextual token the mean of those that join it, which about doubles
    it, and counts the class token in N.
    """
    states, extra = dense(pixels).hidden_states, int(dense.config.has_cls_token)
    block: Any = dense.blocks[read - 1]
    query, key, _ = block.attn.heads(block.norm1(states[read - 1]))
    received = attention_received(query, key, extra)  # (B, P)
    contextual = round(count * CONTEXTUAL_SHARE)
    dominant = received.topk(count - contextual, dim=1).indices
    if not contextual:
        return chosen(states, dominant, extra)
    places = join(dominant, key.mean(dim=1)[:, extra:], contextual)
    return Kept(combine(states, places, count, extra), places)


def join(dominant: Tensor, key: Tensor, contextual: int) -> Tensor:
    """Which of the kept tokens each patch becomes a part of: those in (B, K), keys (B, P, d) -> (B, P) of 0 ... N - 1."""
    patches = key.shape[1]
    key = F.normalize(key.float(), dim=-1)
    kept = torch.zeros(key.shape[:2], dtype=torch.bool, device=key.device).scatter(1, dominant, True)
    rest = kept.int().argsort(dim=1, stable=True)[:, : patches - dominant.shape[1]]  # (B, P - K), row by row
    spaced = torch.arange(contextual, device=key.device) * rest.shape[1] // contextual
    target = rest[:, spaced]  # (B, N - K)
    similarity = key @ key.gather(1, target[..., None].expand(-1, -1, key.shape[-1])).mT  # (B, P, N - K)
    kept = kept.scatter(1, target, True)
    alone = torch.arange(patches, device=key.device).expand_as(kept)
    owner = torch.where(kept, alone, target.gather(1, similarity.argmax(dim=-1)))  # (B, P) of 0 ... P - 1
    return (kept.cumsum(dim=1) - 1).gather(1, owner)


def diversity(dense: DenseTransformer, pixels: Tensor, count: int, read: int) -> Kept:
    """Greedily the token farthest from those taken already, by cosine distance of the tokens that are read.

    The first is the one whose nearest other is farthest. The authors choose among the projector's outputs; a tower has
    those of its own layer alone.
    """
    states, extra = dense(pixels).hidden_states, int(dense.config.has_cls_token)
    tokens = F.normalize(states[read][:, extra:].float(), dim=-1)
    distance = 1 - tokens @ tokens.mT  # (B, P, P)
    itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    gain = distance.masked_fill(itself, torch.inf).amin(dim=-1)  # (B, P) what taking it next is worth
    nearest, taken = torch.full_like(gain, torch.inf), []
    for _ in range(count):
        token = gain.argmax(dim=1, keepdim=True)  # (B, 1)
        taken.append(token)
        new = distance.gather(1, token[..., None].expand(-1, -1, tokens.shape[1]))[:, 0]  # (B, P)
        gain = nearest = nearest.minimum(new).scatter(1, token, -torch.inf)
    return chosen(states, torch.cat(taken, dim=1), extra)


def random(dense: DenseTransformer, pixels: Tensor, count: int, read: int) -> Kept:
    """Tokens drawn at random, each patch as likely as another: what a way that chooses must beat.

    The photo's pixels are the seed: the same pixels keep the same tokens on every device, in every batch and at every call, and
    fewer are always some of more. Pixels that differ at all draw others, so a photo made ready elsewhere, or a tower in half
    precision, may keep other tokens. Photos whose pixels add up to the same keep the same places, such as mirrored ones.
    """
    patches = math.prod(grid_of(dense.config, pixels))
    # Whole numbers add up to the same in any order, which rounded ones do not.
    seed = (pixels.detach().float() * 4096).round().long().flatten(1).sum(dim=1, keepdim=True)  # (B, 1)
    number = torch.arange(patches, device=pixels.device)
    index = scattered(scattered(seed & WORD) + number & WORD).argsort(dim=1)[:, :count]  # (B, N)
    return chosen(dense(pixels).hidden_states, index, int(dense.config.has_cls_token))


def scattered(number: Tensor) -> Tensor:
    """Numbers of 32 bits in int64, each made another one, no two the same: neighbours come to lie anywhere.

    `lowbias32` of Wellons' hash prospector, with a first step so that 0 does not stay 0. Not `torch.Generator`: its numbers
    differ between devices, and compiled code cannot seed it by a photo.
    """
    number = (number + 0x9E3779B9) & WORD
    number = ((number ^ number >> 16) * 0x7FEB352D) & WORD
    number = ((number ^ number >> 15) * 0x846CA68B) & WORD
    return number ^ number >> 16


def merging(dense: DenseTransformer, pixels: Tensor, count: int, read: int, schedule: Schedule) -> Kept:
    """Similar tokens merged from block to block, so that the hidden state that is read has `count` of them.

    Earlier states have more. Those after it, which no host reads, keep them and weigh them alike.
    """
    merged = TokenMerging(dense, count, schedule, read)(pixels)
    states = list(merged.hidden_states)
    for block in dense.blocks[read:]:
        states.append(block(states[-1]))
    return Kept(tuple(states), merged.places)


METHODS: dict[str, Method] = {
    "resolution": Method(lower_resolution, on_grid=True),
    "larger-patch": Method(larger_patch, on_grid=True),
    "stride": Method(stride, on_grid=True),
    "average": Method(average, on_grid=True),
    "cls-attention": Method(cls_attention, choosing=True),
    "diversity": Method(diversity, choosing=True),
    "random": Method(random),
    "merging": Method(partial(merging, schedule="early"), schedule="early"),
    "merging-decreasing": Method(partial(merging, schedule="decreasing"), schedule="decreasing"),
    "merging-gradual": Method(partial(merging, schedule="gradual"), schedule="gradual"),
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r}; the methods are {', '.join(METHODS)}.")
    return METHODS[name]


def check_count(name: str, count: int, patches: int, read: int) -> None:
    """Raises ValueError unless a method gives so many tokens of so many patches, at the hidden state that is read."""
    method, side = method_named(name), math.isqrt(max(count, 0))
    if not 1 <= count <= patches:
        raise ValueError(f"num_tokens is {count}, and the dense tower has {patches} patches: ask for 1 to {patches}.")
    if method.on_grid and side * side != count:
        raise ValueError(
            f"The method {name!r} gives a square grid of tokens, and {count} is no square: ask for {side**2} or "
            f"{(side + 1) ** 2} tokens."
        )
    if method.schedule:
        merging_counts(patches, count, read, method.schedule)


def grid_of(config: SparseFormerConfig, pixels: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of photos (B, 3, H, W)."""
    height, width = (side // config.teacher_patch_size for side in pixels.shape[-2:])
    return height, width


def take(states: States, index: Tensor, extra: int) -> States:
    """The patches of these places, (B, N), of every hidden state, behind its `extra` leading tokens."""
    leading = torch.arange(extra, device=index.device).expand(len(index), -1)
    index = torch.cat([leading, index + extra], dim=1)[..., None]  # (B, [1 +] N, 1)
    return tuple(state.gather(1, index.expand(-1, -1, state.shape[-1])) for state in states)


def chosen(states: States, index: Tensor, extra: int) -> Kept:
    """The patches of these places, (B, N) in any order, in the order of the photo; the others are dropped."""
    index = index.sort(dim=1).values
    nowhere = index.new_full((len(index), states[-1].shape[1] - extra), -1)
    numbers = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return Kept(take(states, index, extra), nowhere.scatter(1, index, numbers))


def combine(states: States, place: Tensor, count: int, extra: int) -> States:
    """The mean of the patches that share a place, (B, P) of 0 ... `count` - 1, for every hidden state."""
    size = torch.zeros(len(place), count, device=place.device)
    size = size.scatter_add(1, place, torch.ones_like(place, dtype=size.dtype))[..., None]  # (B, N, 1)

    def mean(state: Tensor) -> Tensor:  # (B, [1 +] P, D) -> (B, [1 +] N, D)
        patches = state[:, extra:].float()
        total = patches.new_zeros(len(place), count, patches.shape[-1])
        total = total.scatter_add(1, place[..., None].expand_as(patches), patches)
        return torch.cat([state[:, :extra], (total / size).to(state.dtype)], dim=1)

    return tuple(map(mean, states))
