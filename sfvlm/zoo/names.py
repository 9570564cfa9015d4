"""Named weights: shipped in the package, downloaded, or on the Hugging Face hub under a shorter name.

    from sfvlm.zoo.names import resolve
    model = CLIPModel.from_pretrained(resolve("clip-tiny"))

`sfvlm zoo` lists the names. A name becomes a folder that stock `from_pretrained` opens, or a hub id; anything that is already a
path or a hub id stays as it is. What is downloaded or put together lies in the cache folder: `$SFVLM_CACHE`, else
`$XDG_CACHE_HOME/sfvlm`, else `~/.cache/sfvlm`.
"""

import difflib
import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..util.files import write_text
from .cache import cache_folder, cached, make_writable
from .downloads import download, hub_folder
from .packing import assemble, file_sha256, tower_of

WEIGHTS = Path(__file__).parents[1] / "weights"

Kind = Literal["shipped", "release", "teacher", "host"]


@dataclass(frozen=True)
class Entry:
    """One named model.

    Attributes:
        kind: shipped in the package; an official release; a CLIP on the hub; a LLaVA on the hub.
        what: One line for people.
        source: URL of a release, hub id of a teacher or host.
        sha256: Of a release's file; None where nobody has published it.
    """

    kind: Kind
    what: str
    source: str = ""
    sha256: str | None = None


# showlab/sparseformer, `factory.py`; it publishes no hashes.
_RELEASES = "https://github.com/showlab/sparseformer/releases/download/v2.0.0-refactor/sparseformer_btsp"

ZOO: dict[str, Entry] = {
    "clip-tiny": Entry("shipped", "CLIP, ViT-Ti/16 at 224 px, small text tower"),
    "llava-tiny": Entry("shipped", "LLaVA on clip-tiny's tower, small LLaMA"),
    "sparseformer-tiny-49": Entry("shipped", "SparseFormer of 49 tokens, from clip-tiny"),
    "sparseformer-augreg-base": Entry(
        "release", "official, 48 tokens, AugReg ViT-B, ImageNet classifier", f"{_RELEASES}_augreg_base_converted.pth"
    ),
    "sparseformer-augreg-large": Entry(
        "release", "official, 48 tokens, AugReg ViT-L, ImageNet classifier", f"{_RELEASES}_augreg_large_converted.pth"
    ),
    "sparseformer-clip-base": Entry(
        "release", "official, 48 tokens, OpenAI CLIP ViT-B", f"{_RELEASES}_openai_clip_base_converted.pth"
    ),
    "sparseformer-clip-large": Entry(
        "release", "official, 63 tokens, OpenAI CLIP ViT-L", f"{_RELEASES}_openai_clip_large_converted.pth"
    ),
    "clip-b32": Entry("teacher", "OpenAI CLIP ViT-B/32", "openai/clip-vit-base-patch32"),
    "clip-b16": Entry("teacher", "OpenAI CLIP ViT-B/16", "openai/clip-vit-base-patch16"),
    "clip-l14": Entry("teacher", "OpenAI CLIP ViT-L/14", "openai/clip-vit-large-patch14"),
    "clip-l14-336": Entry(
        "teacher", "OpenAI CLIP ViT-L/14 at 336 px: LLaVA-1.5's tower", "openai/clip-vit-large-patch14-336"
    ),
    "laion-b16": Entry("teacher", "OpenCLIP ViT-B/16, LAION-2B", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    "laion-l14": Entry("teacher", "OpenCLIP ViT-L/14, LAION-2B", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    "laion-h14": Entry("teacher", "OpenCLIP ViT-H/14, LAION-2B", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "datacomp-l14": Entry("teacher", "OpenCLIP ViT-L/14, DataComp-XL", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
    "siglip-b16": Entry("teacher", "SigLIP ViT-B/16", "google/siglip-base-patch16-224"),
    "siglip-l16-384": Entry("teacher", "SigLIP ViT-L/16 at 384 px", "google/siglip-large-patch16-384"),
    "llava-1.5-7b": Entry("host", "LLaVA-1.5, Vicuna 7B", "llava-hf/llava-1.5-7b-hf"),
    "llava-1.5-13b": Entry("host", "LLaVA-1.5, Vicuna 13B", "llava-hf/llava-1.5-13b-hf"),
    "llava-1.6-vicuna-7b": Entry("host", "LLaVA-NeXT, Vicuna 7B", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    "llava-1.6-mistral-7b": Entry("host", "LLaVA-NeXT, Mistral 7B", "llava-hf/llava-v1.6-mistral-7b-hf"),
    "llava-onevision-0.5b": Entry("host", "LLaVA-OneVision, Qwen2 0.5B", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    "llava-onevision-7b": Entry("host", "LLaVA-OneVision, Qwen2 7B", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
}


def resolve(name_or_path: str | Path) -> Path | str:
    """A name of the zoo to a folder or hub id; a path, hub id, `timm:...` or `open_clip:...` to itself.

    What exists on disk wins over a name, as in transformers. A release is downloaded and converted the first time.

    Raises:
        ValueError: No such name; its weights are not installed; or they can be neither downloaded nor found.
    """
    name = str(name_or_path)
    if Path(name).exists():
        return name_or_path
    if name not in ZOO:
        if any(mark in name for mark in ("/", os.sep, ":")):
            return name_or_path
        near = difflib.get_close_matches(name, ZOO, cutoff=0.3)
        raise ValueError(
            f"{name!r} is neither a path nor a name of the zoo; the nearest: {', '.join(near) or ', '.join(ZOO)}. "
            "`sfvlm zoo` lists them all."
        )
    entry = ZOO[name]
    if entry.kind == "shipped":
        return _shipped_folder(name)
    return _release_folder(name, entry) if entry.kind == "release" else entry.source


def folder_of(name: str | Path) -> Path:
    """The folder of a model given by path, hub id or name of the zoo; downloaded where it must be.

    Raises:
        ValueError: It can be neither found nor downloaded.
    """
    found = resolve(name)
    return Path(found) if Path(found).is_dir() else hub_folder(str(found), pickles=True)


def shipped() -> dict[str, int]:
    """Names of the shipped models that this installation has, and their sizes in bytes as stored."""
    names = [name for name, entry in ZOO.items() if entry.kind == "shipped" and (WEIGHTS / name).is_dir()]
    return {name: sum(file.stat().st_size for file in (WEIGHTS / name).rglob("*") if file.is_file()) for name in names}


def _shipped_folder(name: str) -> Path:
    """The folder in the package; for a LLaVA stored without its tower, the assembled one in the cache."""
    stored = WEIGHTS / name
    if not (stored / "config.json").is_file():
        raise ValueError(
            f"The weights of {name} are not in this installation: install sfvlm's wheel, or make {stored} with "
            "scripts/build_zoo.py."
        )
    tower = tower_of(stored)
    if tower is None:
        return stored
    digest = hashlib.sha256()
    for file in sorted(path for path in stored.iterdir() if path.is_file()):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())  # tower.json has the hash of the tower's file
    folder = cache_folder() / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        make_writable(folder.parent)
        with cached(folder) as temporary:
            assemble(stored, _shipped_folder(tower), temporary)
    return folder


def _release_folder(name: str, entry: Entry) -> Path:
    """An official release as a SparseFormer folder in the cache, made by this version of the package."""
    from ..encoder.folder import image_processor
    from ..encoder.showlab import load_official

    folder = cache_folder() / f"{name}-{importlib.metadata.version('sfvlm')}"
    if folder.is_dir():
        return folder
    make_writable(folder.parent)
    file = download(entry.source, folder.with_name(entry.source.rpartition("/")[2]), entry.sha256)
    try:
        model = load_official(file, name)
    except Exception as error:  # a damaged pickle raises errors of many unrelated types
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{file} cannot be opened as {name} ({reason}); remove it to download it again.") from error
    with cached(folder) as temporary:
        model.save_pretrained(temporary)
        image_processor(model.config).save_pretrained(temporary)
        card = f"# {name}\n\nConverted from {entry.source} (sha256 {file_sha256(file)}), MIT licence.\n"
        write_text(temporary / "README.md", card)
    return folder


def listing() -> str:
    """All names as a Markdown table, with where each comes from."""
    sizes = shipped()
    lines = ["| name | kind | what | where |", "|---|---|---|---|"]
    for name, entry in ZOO.items():
        where = f"in the package, {sizes[name] / 1e6:.1f} MB" if name in sizes else entry.source or "not installed"
        lines.append(f"| {name} | {entry.kind} | {entry.what} | {where} |")
    return "\n".join(lines)
