"""Sparse vision towers: bootstraps a SparseFormer from a CLIP tower and unlabelled photos.

Importing registers the models with transformers' Auto classes and does nothing else. The public names are imported when they
are asked for, so that the `sfvlm` command can say what its flags are before torch is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_once_imported

if TYPE_CHECKING:
    from .alternatives.configuration import ReducedTowerConfig
    from .alternatives.towers import ReducedTower
    from .encoder.configuration import SparseFormerConfig, preset
    from .encoder.sparseformer import SparseFormerModel, SparseFormerOutput
    from .hosts.swap import swap

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

register_once_imported()


def __getattr__(name: str) -> Any:
    """A public name; or one of the package's modules, as `sfvlm.encoder.roi` after `import sfvlm` alone."""
    global ReducedTower, ReducedTowerConfig, SparseFormerConfig, SparseFormerModel, SparseFormerOutput, preset, swap
    if name in __all__:
        from .alternatives.configuration import ReducedTowerConfig
        from .alternatives.towers import ReducedTower
        from .encoder.configuration import SparseFormerConfig, preset
        from .encoder.sparseformer import SparseFormerModel, SparseFormerOutput
        from .hosts.swap import swap

        return globals()[name]
    missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("_"):
        raise missing
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise missing from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
