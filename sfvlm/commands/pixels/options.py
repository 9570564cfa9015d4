"""The flags of `sfvlm segmentation`, `sfvlm train-segmentation`, `sfvlm train-guide` and `sfvlm segment`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ...dense.options import GuideOptions
from ...segmentation.options import SegmentationOptions


@dataclass(frozen=True)
class SegmentationCommand:
    """Measure what models say of each pixel, beside the dense tower and the cheap ways to as few tokens."""

    model: list[str]
    """Trained segmentation models; or SparseFormer folders and names of `sfvlm zoo`, with --train or --names."""
    data: str
    """Photos with masks: shards of KEY.jpg and KEY.png, a folder with images/ and masks/, a dataset on disk, or photos::masks."""
    train: str | None = None
    """Photos with masks to fit a linear probe to: one for each tower that is no segmentation model, and for each control."""
    names: str | None = None
    """Maps from class names alone: a file with a line a class, names of one class parted by commas; or voc, coco-objects, camvid."""
    ways: list[str] = field(default_factory=lambda: ["maskclip", "sclip", "clearclip", "naclip"])
    """With --names: how the last block is changed. clip leaves it as it is."""
    threshold: float = 0.0
    """With --names: a pixel whose best class is less probable than this is background, class 0."""
    guide: Path | None = None
    """A folder with a guide for the SparseFormers; default their own, where they have one."""
    teacher: str | None = None
    """The dense tower beside them; default the one that MODEL/bootstrap.json names."""
    controls: bool = False
    """Also measure every cheap way to as few tokens."""
    num_tokens: list[int] = field(default_factory=list)
    """Budgets; default each model's own."""
    classes: Path | None = None
    """A file of class names, one a line or JSON; default the data's own, or numbers."""
    reduce_labels: bool = False
    """Masks have 0 for no class and 1 for the first, as ADE20K's."""
    shortest: int | None = None
    """See each photo in windows: the side in pixels that its shorter side is made to. Default: the whole photo at once."""
    stride: int = 112
    """With --shortest: pixels from one window to the next."""
    epochs: int = 40
    """Of a linear probe."""
    limit: int | None = None
    """At most so many photos of --data, spread evenly."""
    overlays: int = 0
    """Draw so many photos with what each model sees, as PNG beside --out."""
    batch_size: int = 16
    """Photos encoded at once."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """A .json file to write; the folder of that name gets a file a row."""


@dataclass(frozen=True)
class TrainSegmentationCommand:
    """Train a segmentation model: a linear probe on a frozen tower, or both, from photos with masks."""

    train: str
    """Photos with masks to learn from, as `sfvlm segmentation --data` takes them."""
    val: str
    """Photos with masks to measure on."""
    out: Path
    """Receives the model, and checkpoints along the way."""
    model: str = "sparseformer-tiny-49"
    """The tower: a SparseFormer (folder or name of `sfvlm zoo`), or a teacher as bootstrapping takes it, which stays dense."""
    guide: Path | None = None
    """A folder with a guide for the SparseFormer; default its own, where it has one."""
    boxes_alone: bool = False
    """Make the map from boxes alone, though the model has a guide."""
    num_tokens: int | None = None
    """Budget; default the model's own."""
    classes: Path | None = None
    """A file of class names, one a line or JSON; default what the source calls them, or numbers."""
    reduce_labels: bool = False
    """Masks have 0 for no class and 1 for the first, as ADE20K's."""
    resume: bool = False
    """Continue an interrupted run."""
    training: SegmentationOptions = field(default_factory=SegmentationOptions)
    """How it is trained."""


@dataclass(frozen=True)
class SegmentCommand:
    """Draw what each pixel of a photo shows, from class names that you give or by a trained model."""

    photo: str
    """An image file, or scenes:1:SEED for a rendered one."""
    out: Path
    """The picture to write."""
    names: list[str] = field(default_factory=list)
    """Classes, the names of one parted by commas: cat "grass, lawn" sky. None for a model that was trained with its own."""
    model: str = "sparseformer-tiny-49"
    """A SparseFormer that was made from a CLIP, or a trained segmentation model."""
    guide: Path | None = None
    """A folder with a guide for the SparseFormer; default its own, where it has one."""
    teacher: str | None = None
    """The dense tower beside it, with the text tower; default the one that MODEL/bootstrap.json names."""
    way: str = "sclip"
    """How the last block is changed: clip, maskclip, sclip, clearclip or naclip."""
    threshold: float = 0.0
    """A pixel whose best class is less probable than this is left as it is."""
    num_tokens: int | None = None
    """Budget; default the model's own."""


@dataclass(frozen=True)
class TrainGuideCommand:
    """Teach a SparseFormer to make the dense map of its teacher, from photos without labels; the SparseFormer stays as it is."""

    model: str = "sparseformer-tiny-49"
    """SparseFormer folder, or name of the zoo."""
    teacher: str | None = None
    """That it was made from; default what its bootstrap.json says."""
    photos: list[str] = field(default_factory=lambda: ["scenes:2000"])
    """Folders, tar shards (globs and braces too), Hugging Face datasets on disk, or scenes:COUNT for rendered ones."""
    out: Path | None = None
    """Folder that receives guide/; default the model's own."""
    start_from: Path | None = None
    """Folder whose guide is trained on; its sizes and its choice of patches count then."""
    guide_size: int = 128
    """Width of the guide."""
    attending_blocks: int = 1
    """Blocks that attend to the tokens."""
    mixing_blocks: int = 2
    """Blocks after them that mix neighbours only."""
    even_share: float | None = 1.0
    """How the encoder chooses its patches where a map is wanted: the share that is the best of each region."""
    context_share: float | None = None
    """Context where a map is wanted, as a share of the model's tokens; default as the model has it."""
    context_blocks: int | None = None
    """Blocks that this context stays for; default as the model has it."""
    device: str | None = None
    """Default cuda where there is one."""
    resume: bool = False
    """Continue the run in OUT."""
    training: Annotated[GuideOptions, tyro.conf.arg(name="")] = field(default_factory=GuideOptions)
