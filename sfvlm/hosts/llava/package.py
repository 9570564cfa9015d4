"""The original `llava` package with our towers: `mm_vision_tower` "sfvlm:FOLDER", and its command lines unedited.

    python -m sfvlm.llava_package llava.serve.cli --model-path ... --image-file ...
    python -m sfvlm.llava_package --tower runs/sf49 llava.eval.model_vqa_loader --model-path ...

The first reads the tower from the host's config.json, the second puts it into whatever host is opened. From Python,
`register()` before a model is opened does the same. Nothing of this happens on import.
"""

import functools
import importlib
import importlib.util
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...encoder.folder import open_config
from ...util.errors import reason
from ...zoo.names import resolve
from .contract import VisionTower, pinpoints
from .models import adapt, restore
from .tower import PREFIX, LlavaTower

ARCH = "llava.model.llava_arch"
BUILDER = "llava.model.multimodal_encoder.builder"
FUNCTION = "build_vision_tower"


class _Builder:
    """The package's `build_vision_tower`, with one more kind of name; `tower` stands for every name where it is given."""

    def __init__(self, original: Callable[..., Any], tower: str | None = None) -> None:
        functools.update_wrapper(self, original)
        self.original, self.tower = original, tower

    def __call__(self, vision_tower_cfg: Any, **options: Any) -> VisionTower:
        adapt(
            sys.modules.get(ARCH)
        )  # a host that asks for its tower may be of a class that was imported since `register`
        cfg = vision_tower_cfg
        name = getattr(cfg, "mm_vision_tower", getattr(cfg, "vision_tower", None))
        if self.tower and hasattr(cfg, "mm_vision_tower") and name != PREFIX + self.tower:
            name = self._overrule(cfg, str(name))
        if isinstance(name, str) and name.startswith(PREFIX):
            return LlavaTower(name, cfg, **options)
        return self.original(cfg, **options)

    def _overrule(self, cfg: Any, dense: str) -> str:
        """Writes our tower into the host's configuration; photos are brought to as many tiles as before, of its size."""
        name = f"{PREFIX}{self.tower}"
        sizes = pinpoints(cfg) if "anyres" in (getattr(cfg, "image_aspect_ratio", None) or "") else []
        if sizes:
            new = LlavaTower(name, types.SimpleNamespace(mm_vision_select_layer=-1), delay_load=True).image_size
            old = self._tile_side(dense)
            broken = [size for size in sizes if size[0] % old or size[1] % old]
            if broken:
                raise ValueError(
                    f"The host's tiles have {old} pixels, and its grid {broken[0]} is no multiple of that."
                )
            cfg.image_grid_pinpoints = [[width // old * new, height // old * new] for width, height in sizes]
        cfg.mm_vision_tower = name
        return name

    def _tile_side(self, dense: str) -> int:
        """The dense tower's image size, from its configuration."""
        asked = types.SimpleNamespace(mm_vision_tower=dense, mm_vision_select_layer=-1)
        try:
            return _Builder(self.original)(asked, delay_load=True).config.image_size
        except Exception as error:  # no network, no such folder, or a name that only a fork of the package knows
            raise ValueError(
                f"The size of the host's tiles is that of its tower {dense}, whose configuration cannot be read "
                f"({reason(error)}): write mm_vision_tower and image_grid_pinpoints into its config.json."
            ) from error


def register(tower: str | None = None) -> None:
    """Makes the installed `llava` package accept "sfvlm:FOLDER" as a tower, in all its modules; again is once.

    Its language models are called by the names that the installed transformers uses (`sfvlm.hosts.llava.models`).

    Args:
        tower: A SparseFormer folder or name, to be put into every host that is opened, whatever its config.json names.
            Projector and language model stay the host's.

    Raises:
        ValueError: The package is not installed, or cannot be imported; the message has the reason. Or the tower is none.
    """
    if tower is not None:
        open_config(Path(resolve(tower)))
    builder = _import_builder()
    adapt(sys.modules.get(ARCH))
    found = getattr(builder, FUNCTION)
    if isinstance(found, _Builder):
        found.tower = tower
    else:
        _replace(found, _Builder(found, tower))


def unregister() -> None:
    """Undoes `register`, also in modules that were imported since."""
    found = getattr(sys.modules.get(BUILDER), FUNCTION, None)
    if isinstance(found, _Builder):
        restore(sys.modules.get(ARCH))
        _replace(found, found.original)


def _replace(old: Any, new: Any) -> None:
    """In every module that imported the function by its name: the package's own do so before anyone can come between."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(FUNCTION) is old:
            setattr(module, FUNCTION, new)


def _import_builder() -> types.ModuleType:
    try:
        return importlib.import_module(BUILDER)
    except Exception as error:
        if importlib.util.find_spec("llava") is None:
            raise ValueError(
                "The package llava is not installed: `pip install --no-deps llava-torch`, or get github.com/haotian-liu/LLaVA "
                "and put its folder on PYTHONPATH."
            ) from error
        raise ValueError(f"The package llava cannot be imported: {reason(_hidden(error))}") from error


def _hidden(error: Exception) -> Exception:
    """Why the package cannot be imported: its own __init__ swallows the reason, so its model is imported without that."""
    spec = importlib.util.find_spec("llava")
    stub = types.ModuleType("llava")
    stub.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules["llava"] = stub
    try:
        importlib.import_module("llava.model.language_model.llava_llama")
    except Exception as hidden:
        return hidden
    finally:  # half imported, they would let the next try succeed
        for name in [name for name in sys.modules if name == "llava" or name.startswith("llava.")]:
            del sys.modules[name]
    return error


def _check_module(name: str) -> None:
    """Raises ValueError if there is no module of that name."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or name):  # something that a package around it imports
            raise
        found = None
    if found is None:
        raise ValueError(f"There is no module {name}: give a name such as llava.serve.cli.")


USAGE = "usage: python -m sfvlm.llava_package [--tower FOLDER] MODULE [ARGUMENTS OF THE MODULE ...]"


def main(arguments: list[str] | None = None) -> None:
    """Runs a module as `python -m` does, after `register`."""
    rest = list(sys.argv[1:] if arguments is None else arguments)
    tower = None
    if rest[:1] == ["--tower"] and len(rest) > 1:
        tower, rest = rest[1], rest[2:]
    if not rest or rest[0].startswith("-"):
        asked = rest[:1] in (["-h"], ["--help"])
        (sys.stdout if asked else sys.stderr).write(USAGE + "\n")
        raise SystemExit(0 if asked else 2)
    try:
        register(tower)
        _check_module(rest[0])
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    before, sys.argv = sys.argv, rest
    try:
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
