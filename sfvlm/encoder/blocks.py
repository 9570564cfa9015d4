"""The transformer block and heads that students and dense teachers share: what can be inherited.

Shapes: B batch, N tokens (class token included), D width.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils.generic import ModelOutput

from .configuration import SparseFormerConfig


def check_pixels(pixel_values: Tensor) -> None:
    """Raises ValueError unless these are photos (B, 3, H, W)."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; it must be (batch, 3, height, width).")


def wants_hidden_states(config: PreTrainedConfig, asked: object) -> bool:
    """Whether a call returns hidden states: as it was asked, or as the configuration says where it was not."""
    # LLaVA in transformers 5.23 asks by layer number, and layer 0 or -1 must not read as "no".
    return bool(config.output_hidden_states) if asked is None else asked is not False


def as_asked(config: PreTrainedConfig, return_dict: bool | None, output: ModelOutput) -> Any:
    """The output of a call, or a plain tuple of what is in it."""
    return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class Proportion(NamedTuple):
    """What one block adds to its attention among some of the patches, so that it comes out as among all of them.

    Attributes:
        query: (heads, 1, D / heads), added to every query.
        bias: (1, heads, N, N), added to the scores of every query (rows) and key. Of three dimensions, torch would know no fused
            attention with it.
    """

    query: Tensor
    bias: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with one fused `qkv`: the name keeps LoRA suffix lists meant for an LLM off the tower."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, proportion: Proportion | None = None) -> Tensor:  # (B, N, D) -> (B, N, D)
        query, key, value = self.heads(x)
        bias = None
        if proportion is not None:
            query, bias = query + proportion.query.to(query.dtype), proportion.bias.to(query.dtype)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
        return self.proj(x.reshape(*x.shape[:2], -1))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (B, N, D) -> each (B, heads, N, D / heads)."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value


class MLP(nn.Module):
    """Two linear layers around an activation: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACT2FN[activation]
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block: (B, N, D) -> (B, N, D). Equal to CLIP's, timm's and SigLIP's on the same weights."""

    def __init__(self, width: int, num_heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x: Tensor, proportion: Proportion | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), proportion)
        return x + self.mlp(self.norm2(x))


class ProportionalAttention(nn.Module):
    """What attention among n of P patches lacks of attention among all of them, for every block.

    A patch attends to itself once and to the class token once, as in the teacher, and to each other patch that is seen as to
    (P - 1) / (n - 1) of them: it stands for those that are not seen. So the log of that is added to the scores, times `power`,
    which each head has of its own and is 1 before any training. Which patches stand for more than others is learned: `query`,
    0 before any training, is added to the queries in the same proportion. With all patches seen, nothing is added.

    Source: the log of a size in the scores is proportional attention (ToMe, arXiv 2210.09461, section 3), there of merged
    tokens; that it holds of what was never looked at, and the learned query, are ours.
    """

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        self.patches, self.class_tokens = config.teacher_grid**2, int(config.has_cls_token)
        self.num_heads = config.num_attention_heads
        self.query = nn.Parameter(torch.empty(config.num_hidden_layers, config.hidden_size))
        self.power = nn.Parameter(torch.empty(config.num_hidden_layers, config.num_attention_heads))

    def forward(self, lengths: Sequence[int]) -> list[Proportion | None]:
        """For each block, by how many tokens it is given (class token included); None where nothing is added."""
        proportions: list[Proportion | None] = []
        for length, alike in groupby(lengths):
            first, last = len(proportions), len(proportions) + len(list(alike))
            share = self._log_share(length - self.class_tokens)
            if not share:
                proportions += [None] * (last - first)
                continue
            # All blocks of a length at once: on a GPU each small operation costs more than what it computes.
            query = (share * self.query[first:last]).view(last - first, self.num_heads, 1, -1)
            power = self.power[first:last, None, :, None, None]
            bias = power * (share * self._others(length))  # (blocks, 1, heads, N, N)
            proportions += map(Proportion, query, bias)
        return proportions

    def _log_share(self, seen: int) -> float:
        """Log of how many patches each other one stands for. Never negative: beside a rectangle more are seen than there are."""
        return max(0.0, math.log(max(1, self.patches - 1) / max(1, seen - 1)))

    def _others(self, length: int) -> Tensor:
        """(N, N) 1 where a query's key is another patch, 0 where it is its own or the class token's."""
        others = 1 - torch.eye(length, dtype=self.power.dtype, device=self.power.device)
        return F.pad(others[:, self.class_tokens :], (self.class_tokens, 0))


def attention_received(query: Tensor, key: Tensor, class_tokens: int) -> Tensor:
    """What each image token gets of the class token's attention; without one, of all tokens' on average.

    Args:
        query, key: (B, heads, [1 +] P, d) of one block, from `Attention.heads`.
        class_tokens: 1 or 0.

    Returns:
        (B, P): Shares, averaged over heads.
    """
    scores = ((query[:, :, :1] if class_tokens else query) @ key.mT).float() * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1).mean(dim=(1, 2))[:, class_tokens:]


class AttentionPool(nn.Module):
    """SigLIP's head: one learned query reads all tokens. (B, N, D) -> (B, D)."""

    def __init__(self, width: int, num_heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        query = self.q(self.query).expand(batch, -1, -1).view(batch, 1, self.num_heads, -1).transpose(1, 2)
        key, value = self.kv(x).view(batch, count, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        pooled = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, width)
        pooled = self.proj(pooled)
        return pooled + self.mlp(self.norm(pooled))


class Head(nn.Module):
    """The last norm, pooling, projection into the shared space, classifier: each only where the configuration has it."""

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.pooling = config.pooling
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention_pool = AttentionPool(*block_sizes(config)) if config.pooling == "attention" else None
        self.projection = (
            nn.Linear(width, config.projection_dim, bias=config.projection_bias) if config.projection_dim else None
        )
        self.classifier = nn.Linear(config.embedding_size, config.num_classes) if config.num_classes else None

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pools: (B, N, D) -> pooled (B, projection_dim or D) and logits (B, num_classes) or None."""
        if self.pooling == "cls":
            pooled = self.norm(tokens[:, 0])
        elif self.attention_pool is not None:
            pooled = self.attention_pool(self.norm(tokens))
        else:
            pooled = self.norm(tokens.mean(dim=1))
        if self.projection is not None:
            pooled = self.projection(pooled)
        return pooled, None if self.classifier is None else self.classifier(pooled)


def block_sizes(config: SparseFormerConfig) -> tuple[int, int, int, str, float]:
    """Width, heads, MLP width, activation and norm epsilon of a cortex block, in `Block`'s order."""
    return (
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.hidden_act,
        config.layer_norm_eps,
    )
