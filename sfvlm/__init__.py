"""Sparse vision towers: bootstraps a SparseFormer from a CLIP tower and unlabelled photos.

Importing registers the models with transformers' Auto classes and does nothing else.
"""

from transformers import AutoConfig, AutoModel

from .configuration import SparseFormerConfig, preset
from .reduce import ReducedTower, ReducedTowerConfig
from .sparseformer import SparseFormerModel, SparseFormerOutput
from .swap import swap

__version__ = "0.1.0"
__all__ = [
    "ReducedTower",
    "ReducedTowerConfig",
    "SparseFormerConfig",
    "SparseFormerModel",
    "SparseFormerOutput",
    "preset",
    "swap",
]

AutoConfig.register(SparseFormerConfig.model_type, SparseFormerConfig, exist_ok=True)
AutoModel.register(SparseFormerConfig, SparseFormerModel, exist_ok=True)
AutoConfig.register(ReducedTowerConfig.model_type, ReducedTowerConfig, exist_ok=True)
AutoModel.register(ReducedTowerConfig, ReducedTower, exist_ok=True)
