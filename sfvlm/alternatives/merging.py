"""The arithmetic of token merging (ToMe, arXiv 2210.09461): how many tokens each block leaves, and which become one.

Shapes: B batch, N tokens (class token included), D width.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder.blocks import AttentionPool

Schedule = Literal["early", "decreasing", "gradual"]


class Merged(NamedTuple):
    """Tokens, fewer than before.

    Attributes:
        tokens: (B, N - remove, D), averaged by size.
        size: (B, N - remove) patches each stands for.
        place: (B, N) which of them each token became, or became a part of.
    """

    tokens: Tensor
    size: Tensor
    place: Tensor


def merge(x: Tensor, size: Tensor, metric: Tensor, remove: int, protected: int) -> Merged:
    """Merges the `remove` most similar pairs of tokens into one each; the order of the others stays.

    Args:
        x: (B, N, D) tokens.
        size: (B, N) patches each stands for.
        metric: (B, N, d) by whose cosine they are compared.
        remove: Tokens fewer, at most half of the unprotected ones.
        protected: Leading tokens that do not take part.
    """
    if remove == 0:
        return Merged(x, size, torch.arange(x.shape[1], device=x.device).expand(len(x), -1))
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
    return Merged((total / merged_size[..., None]).to(x.dtype), merged_size, place)


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
