"""The cheap ways to few tokens: what a dense teacher does with a small budget and no training, and what each costs.

A sparse student is worth its training only where it beats these at the same budget. Every control is a module that
takes the photo the student takes, (B, 3, H, W), and returns a `TeacherOutput`, as the dense teacher itself does.

Shapes: B batch, N tokens (class token included), D width, h x w patches.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..encoder.blocks import Attention, AttentionPool, Block
from ..encoder.sparseformer import SparseFormerModel
from ..teachers.inherit import resample_kernel
from ..teachers.open import DenseTransformer, TeacherOutput

Schedule = Literal["early", "decreasing", "gradual"]


class Cost(NamedTuple):
    """What one photo costs."""

    macs: int  # see `macs`
    tokens: int  # image tokens that leave the last block
    mean_tokens: float  # image tokens that enter a block, averaged over the blocks


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
        for block, count in zip(self.dense.blocks[: self.depth], counts, strict=True):
            assert isinstance(block, Block)
            x, size = self._run(block, hidden[-1], size, count + extra)
            hidden.append(x)
        pooled, logits = self._pool(hidden[-1], size)
        return TeacherOutput(pooled, logits, tuple(hidden))

    def _run(self, block: Block, x: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """One block, from (B, N, D) and sizes (B, N) to (B, count, D) and sizes (B, count)."""
        attention: Attention = block.attn
        query, key, value = attention.heads(block.norm1(x))  # each (B, heads, N, D / heads)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=log_size(size, query.dtype))
        x = x + attention.proj(read.transpose(1, 2).flatten(2))
        x, size = merge(x, size, key.mean(dim=1), x.shape[1] - count, int(self.has_cls_token))
        return x + block.mlp(block.norm2(x)), size

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


def merge(x: Tensor, size: Tensor, metric: Tensor, remove: int, protected: int) -> tuple[Tensor, Tensor]:
    """Merges the `remove` most similar pairs of tokens into one each; the order of the others stays.

    Args:
        x: (B, N, D) tokens.
        size: (B, N) patches each stands for.
        metric: (B, N, d) by whose cosine they are compared.
        remove: Tokens fewer, at most half of the unprotected ones.
        protected: Leading tokens that do not take part.

    Returns:
        Tokens (B, N - remove, D), averaged by size, and sizes (B, N - remove).
    """
    if remove == 0:
        return x, size
    metric = F.normalize(metric[:, protected:].float(), dim=-1)
    similarity, partner = (metric[:, 0::2] @ metric[:, 1::2].mT).max(dim=-1)  # (B, seekers)
    seeker = similarity.topk(remove, dim=-1).indices  # (B, remove)
    leaving, host = protected + 2 * seeker, protected + 2 * partner.gather(1, seeker) + 1
    stays = torch.ones_like(size, dtype=torch.bool).scatter(1, leaving, False)
    place = stays.cumsum(dim=1) - 1  # (B, N) where each token goes: its rank among those that stay, or its host's place
    place = place.scatter(1, leaving, place.gather(1, host))
    count = x.shape[1] - remove
    merged_size = size.new_zeros(len(x), count).scatter_add(1, place, size)
    weighted = x * size[..., None]
    total = weighted.new_zeros(len(x), count, x.shape[-1]).scatter_add(1, place[..., None].expand_as(x), weighted)
    return (total / merged_size[..., None]).to(x.dtype), merged_size


def log_size(size: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to a token's keys so that it weighs as all its patches did: (B, N) -> (B, 1, 1, N)."""
    return size.log().to(dtype)[:, None, None, :]


def attention_pool(pool: AttentionPool, x: Tensor, size: Tensor) -> Tensor:
    """`AttentionPool` over tokens of different size: (B, N, D), sizes (B, N) -> (B, D)."""
    query = pool.q(pool.query).expand(len(x), -1, -1).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
    key, value = pool.kv(x).unflatten(-1, (2, pool.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=log_size(size, query.dtype))
    pooled = pool.proj(read.transpose(1, 2).flatten(1))
    return pooled + pool.mlp(pool.norm(pooled))


def merging_counts(tokens: int, target: int, depth: int, schedule: Schedule) -> tuple[int, ...]:
    """Image tokens after each of `depth` blocks. A block can at most halve them.

    Raises:
        ValueError: The target is not reached, however much every block merges.
    """
    target = min(target, tokens)
    if schedule == "early":
        least = math.ceil(math.log2(tokens / max(target, 1)))  # blocks that would halve
        blocks = max(1, round(depth / 3), least)
        counts = [math.ceil(round(tokens * (target / tokens) ** (number / blocks), 6)) for number in range(blocks)]
        counts = [*counts, *[target] * depth][: depth + 1]
    else:
        shares = [1 if schedule == "gradual" else depth - 1 - number for number in range(depth)]
        removed = [(tokens - target) * sum(shares[:number]) / max(1, sum(shares)) for number in range(depth)]
        counts = [*(tokens - round(each) for each in removed), target]
        for number in range(1, depth):  # such steps would more than halve few tokens: at the start, or near the target
            counts[number] = max(counts[number], math.ceil(counts[number - 1] / 2))
        for number in reversed(range(depth)):
            counts[number] = min(counts[number], 2 * counts[number + 1])
    if target < 1 or counts[0] != tokens or counts[-1] != target:
        raise ValueError(f"{depth} blocks cannot merge {tokens} tokens down to {target}: each at most halves them.")
    return tuple(counts[1:])


def macs(module: nn.Module, image_size: int) -> int:
    """Multiply-adds that one more photo of that side costs, by running one and two of them.

    Counted: linear layers, convolutions, and both products of attention; matching in token merging. Not counted: grid
    sampling, resizing, norms, activations, softmax, and what is done once for a model or for a batch of any size, such as
    resampling a kernel.
    """
    parameter = next(module.parameters())
    shape = (3, image_size, image_size)
    return macs_a_photo(
        lambda photos: module(torch.zeros(photos, *shape, device=parameter.device, dtype=parameter.dtype))
    )


def macs_a_photo(run: Callable[[int], object]) -> int:
    """Multiply-adds that one more photo costs, from running one and two of them; `macs` says what counts.

    Args:
        run: Runs so many photos.
    """

    def flops(photos: int) -> int:
        # Plain attention is made of products that the counter knows; not all fused kernels are in older releases of
        # torch. And without gradients the counter stumbles over views of parameters that a module returns.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run(photos)
        return counter.get_total_flops()

    with torch.no_grad():
        run(1)  # what is made once for a model is there then
    return (flops(2) - flops(1)) // 2


@torch.no_grad()
def cost(module: nn.Module, image_size: int) -> Cost:
    """What a square photo of that side costs: for a dense teacher, a control, or a SparseFormer at its own budget."""
    parameter = next(module.parameters())
    pixels = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    if isinstance(module, SparseFormerModel):
        hidden, extra = module(pixels, output_hidden_states=True).hidden_states, module.config.has_cls_token
    else:
        hidden, extra = module(pixels).hidden_states, _has_cls_token(module)
    counts = [tokens.shape[1] - int(extra) for tokens in hidden]
    seen = sum(counts[:-1])
    for sparse in module.modules():  # itself, or inside what gives it a budget
        if isinstance(sparse, SparseFormerModel):  # context is in its blocks, and not in what they hand over
            seen += sparse.config.context_size(counts[-1]) * sparse.config.context_blocks
    return Cost(macs(module, image_size), counts[-1], seen / (len(counts) - 1))


def _has_cls_token(module: nn.Module) -> bool:
    return bool(module.config.has_cls_token if isinstance(module, DenseTransformer) else module.has_cls_token)
