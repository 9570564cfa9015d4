"""Tiny models for tests."""

import torch

from sfvlm.encoder.configuration import SparseFormerConfig
from sfvlm.encoder.sparseformer import SparseFormerModel


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.1) -> torch.nn.Module:
    """Moves every parameter off its initial value, so that no bias, norm or zero-initialised layer hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


def tiny_config(focusing: str = "inherited", **overrides: object) -> SparseFormerConfig:
    fields = dict(
        focusing=focusing,
        image_size=32,
        num_tokens=4,
        conv_dim=8,
        focusing_size=64,
        num_focusing_steps=2,
        num_points=4,
        mixing_points=8,
        generator_size=16,
        teacher_patch_size=8,
        teacher_grid=4,
        glimpse_size=16,
        coarse_blocks=1,
        context_blocks=2,
        proportional_attention=True,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=96,
        projection_dim=24,
    )
    return SparseFormerConfig(**(fields | overrides))


def tiny_model(focusing: str = "inherited", seed: int = 0, **overrides: object) -> SparseFormerModel:
    torch.manual_seed(seed)
    return SparseFormerModel(tiny_config(focusing, **overrides)).eval()
