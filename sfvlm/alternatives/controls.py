"""The cheap ways to few tokens: what a dense teacher does with a small budget and no training.

A sparse student is worth its training only where it beats these at the same budget. Every control is a module that
takes the photo the student takes, (B, 3, H, W), and returns a `TeacherOutput`, as the dense teacher itself does.

Shapes: B batch, N tokens (class token included), D width, h x w patches.
"""

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder.blocks import Attention, Block
from ..teachers.kernels import resample_kernel
from ..teachers.open import DenseTransformer, TeacherOutput
from .costs import Cost, cost
from .merging import Merged, Schedule, attention_pool, log_size, merge, merging_counts


class Control(nn.Module):
    """A way to a small budget, around a dense teacher whose weights it shares.

    Attributes:
        name: For people.
        citation: Where the idea comes from.
    """

    name: str
    citation: str

    def __init__(self, dense: DenseTransformer) -> None:
        super().__init__()
        self.dense = dense

    @property
    def has_cls_token(self) -> bool:
        """Whether the first token is no image token."""
        return self.dense.config.has_cls_token

    def cost(self, image_size: int) -> Cost:
        """What a square photo of that side costs."""
        return cost(self, image_size)

    def forward(self, pixels: Tensor) -> TeacherOutput:
        raise NotImplementedError


class LowerResolution(Control):
    """The photo made smaller, so that the teacher sees side x side patches: (B, 3, H, W) -> TeacherOutput."""

    citation = "resizing the input, positions interpolated (arXiv 2010.11929, section 3.2)"

    def __init__(self, dense: DenseTransformer, side: int) -> None:
        super().__init__(dense)
        self.pixels_a_side = side * dense.config.teacher_patch_size
        self.name = f"lower resolution, {self.pixels_a_side} px"

    def forward(self, pixels: Tensor) -> TeacherOutput:
        return self.dense(resize(pixels, self.pixels_a_side))


class LargerPatch(Control):
    """Patches so large that side x side of them fill the photo, their kernel resampled: (B, 3, H, W) -> TeacherOutput.

    Args:
        dense: The teacher.
        side: Patches a side.
        image_size: Side of the photo. Where it is no multiple of `side`, the photo is resized to the nearest one.
    """

    citation = "FlexiViT, arXiv 2212.08013"
    kernel: Tensor
    bias: Tensor | None

    def __init__(self, dense: DenseTransformer, side: int, image_size: int) -> None:
        super().__init__(dense)
        self.patch = max(1, round(image_size / side))
        self.pixels_a_side = side * self.patch
        self.name = f"larger patch, {self.patch} px"
        kernel, bias = dense.patch.weight.detach(), dense.patch.bias
        self.register_buffer("kernel", resample_kernel(kernel, self.patch), persistent=False)  # (D, 3, patch, patch)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, pixels: Tensor) -> TeacherOutput:
        pixels = resize(pixels, self.pixels_a_side)
        return self.dense.run(self.dense.place(F.conv2d(pixels, self.kernel, self.bias, stride=self.patch)))


class TokenMerging(Control):
    """Token merging: similar image tokens become one, weighted by how many patches each stands for.

        block:  attend (keys biased by log size) -> merge the most similar pairs -> MLP

    (B, 3, H, W) -> TeacherOutput. Every second image token looks for the most similar one of the others, by the cosine
    of keys averaged over heads; the best pairs merge. The class token never does.

    Args:
        dense: The teacher.
        target: Image tokens that leave the last block.
        schedule: "gradual" removes as many in every block, and "decreasing" fewer from block to block until none: both as
            published, and far more costly than the target says, which is reached only at the end. "early" reaches it in the
            first third of the blocks, by the same share in each, so that most blocks see no more than the target: what
            merging comes to at the cost of a tower of few tokens.
        depth: Leading blocks that are run, default all of them; the last of them counts as the teacher's last.
    """

    citation = "ToMe, arXiv 2210.09461"

    def __init__(self, dense: DenseTransformer, target: int, schedule: Schedule, depth: int | None = None) -> None:
        super().__init__(dense)
        self.target = target
        self.schedule: Schedule = schedule
        self.depth = len(dense.blocks) if depth is None else depth
        self.name = f"ToMe, {schedule}, to {target}"

    def forward(self, pixels: Tensor) -> TeacherOutput:
        hidden = [self.dense.embed(pixels)]
        extra = int(self.has_cls_token)
        counts = merging_counts(hidden[0].shape[1] - extra, self.target, self.depth, self.schedule)
        # (B, N) patches a token stands for; float32, because bfloat16 cannot count beyond 256.
        size = torch.ones(hidden[0].shape[:2], device=hidden[0].device)
        places = torch.arange(size.shape[1], device=size.device).expand(size.shape)
        for block, count in zip(self.dense.blocks[: self.depth], counts, strict=True):
            assert isinstance(block, Block)
            x, size, place = self._run(block, hidden[-1], size, count + extra)
            places = place.gather(1, places)
            hidden.append(x)
        pooled, logits = self._pool(hidden[-1], size)
        return TeacherOutput(pooled, logits, tuple(hidden), places[:, extra:] - extra)

    def _run(self, block: Block, x: Tensor, size: Tensor, count: int) -> Merged:
        """One block, from (B, N, D) and sizes (B, N) to (B, count, D), sizes (B, count), and where each token went, (B, N)."""
        attention: Attention = block.attn
        query, key, value = attention.heads(block.norm1(x))  # each (B, heads, N, D / heads)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=log_size(size, query.dtype))
        x = x + attention.proj(read.transpose(1, 2).flatten(2))
        x, size, place = merge(x, size, key.mean(dim=1), x.shape[1] - count, int(self.has_cls_token))
        return Merged(x + block.mlp(block.norm2(x)), size, place)

    def _pool(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor | None]:
        """The teacher's head, in which a token counts for all its patches: (B, N, D) -> pooled (B, E), logits."""
        head = self.dense.head
        if head.pooling == "cls":
            return head(x)
        if head.attention_pool is None:  # the mean of one token is that token
            return head(((x * size[..., None]).sum(1, keepdim=True) / size.sum(1)[:, None, None]).to(x.dtype))
        pooled = attention_pool(head.attention_pool, head.norm(x), size)
        pooled = pooled if head.projection is None else head.projection(pooled)
        return pooled, None if head.classifier is None else head.classifier(pooled)


def make_controls(dense: DenseTransformer, num_tokens: int, image_size: int) -> list[Control]:
    """All controls for a budget; resizing ones take the nearest square. None where the teacher has no more tokens.

    Raises:
        ValueError: The budget is less than 1 token.
    """
    dense.config.check_budget(num_tokens)
    if num_tokens >= (image_size // dense.config.teacher_patch_size) ** 2:
        return []
    side = max(1, round(math.sqrt(num_tokens)))
    return [
        LowerResolution(dense, side),
        LargerPatch(dense, side, image_size),
        *(TokenMerging(dense, num_tokens, schedule) for schedule in get_args(Schedule)),
    ]


def resize(pixels: Tensor, side: int) -> Tensor:
    """Antialiased bilinear resizing to a square: (B, 3, H, W) -> (B, 3, side, side).

    In float32: torch has no antialiased one in half precision on a CPU.
    """
    if pixels.shape[-2:] == (side, side):
        return pixels
    resized = F.interpolate(pixels.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return resized.to(pixels.dtype)
