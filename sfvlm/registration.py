"""Makes transformers know our models from `import sfvlm` on, without importing transformers before somebody does.

    AutoConfig   learns of our configurations as soon as its module has been imported, before or after sfvlm
    AutoModel    learns of a model when its first configuration is made: nobody can ask for the model without one

While a module of transformers is imported, others are half imported, and a thread holds their locks. So what happens at
that moment is little: the modules of our configurations need nothing but `transformers.configuration_utils`, which the
module of AutoConfig itself needs. All else, torch's part too, comes when a configuration is made.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "transformers.models.auto"
AWAITED = f"{PACKAGE}.configuration_auto"


def register() -> None:
    """Registers the configurations now, which imports transformers."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from .alternatives.configuration import ReducedTowerConfig
    from .encoder.configuration import SparseFormerConfig
    from .segmentation.configuration import SegmenterConfig

    for config in (SparseFormerConfig, ReducedTowerConfig, SegmenterConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_once_imported() -> None:
    """Registers the configurations whenever the module of AutoConfig is imported; at once where it has been."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    # Another thread may have looked for the module just before our finder was there: its package came earlier still, and
    # importing waits for that thread.
    if PACKAGE in sys.modules:
        register()


class _Finder(MetaPathFinder):
    """Finds one module as the finders behind it do, and has it loaded by a `_Loader`.

    It stays: a module that is imported anew starts with what transformers knows by itself.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    """Loads a module as `loader` does, then registers the configurations."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader  # from now on the module is like any other
        self.loader.exec_module(module)
        register()

    def __getattr__(self, name: str) -> Any:
        """Its source and so on, for those who look the module up without importing it."""
        if name == "loader":  # not even it is there while an object is copied
            raise AttributeError(name)
        return getattr(self.loader, name)
