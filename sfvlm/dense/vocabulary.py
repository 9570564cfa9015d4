"""Open vocabulary without training: class names and a CLIP to classes of pixels, by another last block.

    tokens before the last block (B, [1 +] N, D) --last block, changed--> (B, N, D) --norm, projection--> (B, N, E), of unit length
    -> laid out as a map (B, E, h, w) -> cosines with names (B, T, h, w) -> larger -> `decide` -> classes

A CLIP's last block mixes what all tokens say of the whole photo, which is what its class token needs. The four ways make a token keep
to itself and its like instead; none has weights of its own:

| way | attention of the last block | kept of the block |
|---|---|---|
| clip | queries and keys, as it is | residual, MLP |
| maskclip | none: each token's own value | residual, MLP |
| sclip | queries with queries, plus keys with keys | residual, MLP |
| clearclip | queries with queries | |
| naclip | keys with keys, plus a Gaussian of the distance | |

Of a dense tower a distance is between patches; of a sparse one, between the centres of boxes, in the teacher's patches too.

Sources: MaskCLIP (arXiv 2112.01071), SCLIP (arXiv 2312.01597), ClearCLIP (arXiv 2407.12442), NACLIP (arXiv 2404.08181), the last three as
their repositories have them.

Shapes: B batch, N tokens, D width, E width of the shared space, T texts, K classes, h x w map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder.blocks import Block, Head

Way = Literal["clip", "maskclip", "sclip", "clearclip", "naclip"]
WAYS: tuple[Way, ...] = get_args(Way)
GAUSSIAN_STD = 5.0  # patches; NACLIP, section 4
SCALE = 40.0  # of cosines before the softmax; the default of SCLIP's and NACLIP's repositories


def last_block(
    block: Block, hidden: Tensor, way: Way, centers: Tensor, class_tokens: int, bias: Tensor | None = None
) -> Tensor:
    """What a changed last block makes of each image token.

    Args:
        block: The last one of the tower.
        hidden: (B, class_tokens + N, D) what goes into it.
        way: One of `WAYS`.
        centers: (B, N, 2) or (1, N, 2), where the tokens look, in patches of the dense tower. Only `naclip` asks for it.
        class_tokens: 1 or 0.
        bias: (1, heads, class_tokens + N, class_tokens + N), added to the scores of every attention: what a token stands for
            beside itself (`sfvlm.encoder.blocks.ProportionalAttention`). None adds nothing.

    Returns:
        (B, N, D).

    Raises:
        ValueError: The way is unknown.
    """
    if way not in WAYS:
        raise ValueError(f"There is no way {way!r} to open-vocabulary maps; the ways are {', '.join(WAYS)}.")
    query, key, value = block.attn.heads(block.norm1(hidden))  # each (B, heads, 1 + N, D / heads)
    added: Tensor | float = 0.0 if bias is None else bias.to(query.dtype)

    def attend(one: Tensor, other: Tensor) -> Tensor:
        return (query.shape[-1] ** -0.5 * one @ other.mT + added).softmax(dim=-1)

    if way == "clip":
        read = attend(query, key) @ value
    elif way == "maskclip":
        read = value
    elif way == "sclip":
        read = (attend(query, query) + attend(key, key)) @ value
    elif way == "clearclip":
        read = attend(query, query) @ value
    else:
        near = F.pad(nearness(centers), (class_tokens, 0, class_tokens, 0))  # the class token is near to none
        added = added + near[:, None].to(key.dtype)
        read = attend(key, key) @ value
    out = block.attn.proj(read.transpose(1, 2).flatten(2))
    if way in ("clip", "maskclip", "sclip"):
        out = out + hidden
        out = out + block.mlp(block.norm2(out))
    return out[:, class_tokens:]


def nearness(centers: Tensor, std: float = GAUSSIAN_STD) -> Tensor:
    """NACLIP's Gaussian, 1 at no distance: centres (B, N, 2) in patches -> (B, N, N)."""
    distance = (centers[:, :, None] - centers[:, None]).square().sum(-1)
    return torch.exp(-distance / (2 * std**2))


def shared_space(head: Head, tokens: Tensor) -> Tensor:
    """Tokens as vectors beside texts: (B, N, D) -> (B, N, E) of unit length.

    Raises:
        ValueError: The tower has no projection into a space of texts, or pools by attention (SigLIP).
    """
    if head.attention_pool is not None:
        raise ValueError(
            "The tower pools by attention, as SigLIP does: its tokens by themselves are not in the space of texts."
        )
    if head.projection is None:
        raise ValueError("The tower has no projection into a space that it shares with texts: give a CLIP.")
    return F.normalize(head.projection(head.norm(tokens)).float(), dim=-1)


@dataclass(frozen=True)
class Vocabulary:
    """Names as vectors, several of which may mean one class.

    Attributes:
        texts: (E, T) vectors of unit length.
        owner: (T,) the class of each, 0 to K - 1.
        num_classes: K.
        background: The class of pixels that none of the names fits, for `threshold`; None without one.
        threshold: Least probability of a class; below it a pixel is background.
        scale: Of cosines before the softmax.
    """

    texts: Tensor
    owner: Tensor
    num_classes: int
    background: int | None = None
    threshold: float = 0.0
    scale: float = SCALE

    def __post_init__(self) -> None:
        if self.threshold and self.background is None:
            raise ValueError(
                f"The threshold is {self.threshold}, and there is no background class for what is below it."
            )
        if self.texts.shape[1] != len(self.owner):
            raise ValueError(f"There are {self.texts.shape[1]} texts and classes for {len(self.owner)}.")

    def similarities(self, features: Tensor) -> Tensor:
        """Cosines with every text: (B, E, h, w) -> (B, T, h, w). Interpolated features are made unit vectors first."""
        return torch.einsum("behw,et->bthw", F.normalize(features, dim=1), self.texts.to(features))

    def decide(self, similarities: Tensor) -> Tensor:
        """The class of each pixel, that of the name which fits best: (B, T, h, w) -> (B, h, w)."""
        greatest, name = similarities.max(dim=1)
        classes = self.owner.to(name.device)[name]
        if self.background is None:
            return classes
        # Of the softmax over all names, as their authors threshold it.
        probability = (self.scale * greatest - (self.scale * similarities).logsumexp(dim=1)).exp()
        return classes.masked_fill(probability < self.threshold, self.background)


def names_of(line: str) -> tuple[str, ...]:
    """The names of a class as one line has them, parted by commas or semicolons."""
    names = tuple(filter(None, (name.strip() for name in line.replace(";", ",").split(","))))
    if not names:
        raise ValueError(f"The line {line!r} names no class.")
    return names


def owners(classes: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], Tensor]:
    """All names of all classes, and the class of each: (T,)."""
    names = tuple(name for each in classes for name in each)
    owner = torch.tensor([number for number, each in enumerate(classes) for _ in each])
    return names, owner


def block_of(model: nn.Module) -> Block:
    """The last block of a tower."""
    block = model.blocks[-1]  # type: ignore[index]
    assert isinstance(block, Block)
    return block
