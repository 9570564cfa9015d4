"""Sparse vision towers: bootstraps a SparseFormer from a CLIP tower and unlabelled photos.

Importing registers the model with transformers' Auto classes and does nothing else.
"""

from transformers import AutoConfig, AutoModel

from .configuration import SparseFormerConfig, preset
from .sparseformer import SparseFormerModel, SparseFormerOutput

__version__ = "0.1.0"
__all__ = ["SparseFormerConfig", "SparseFormerModel", "SparseFormerOutput", "preset"]

AutoConfig.register(SparseFormerConfig.model_type, SparseFormerConfig, exist_ok=True)
AutoModel.register(SparseFormerConfig, SparseFormerModel, exist_ok=True)
