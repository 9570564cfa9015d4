"""The flags of `sfvlm zeroshot`."""

from dataclasses import dataclass, field
from pathlib import Path

from ...util.choices import Task


@dataclass(frozen=True)
class ZeroShotCommand:
    """Measure SparseFormers beside their dense teacher, and beside the cheap ways to the same number of tokens."""

    data: list[str]
    """Photos, each source measured alone: class folders, shards with labels or captions, CLIP_benchmark's folders."""
    model: list[str] = field(default_factory=list)
    """SparseFormer folders, or names of `sfvlm zoo`."""
    teacher: str | None = None
    """As in bootstrapping; default the one that MODEL/bootstrap.json names."""
    task: Task = "auto"
    """auto: classification where there are labels, retrieval where there are captions, else fidelity to the teacher."""
    controls: bool = False
    """Also measure the teacher at lower resolution, with larger patches, and with merged tokens."""
    num_tokens: list[int] = field(default_factory=list)
    """Budgets; default each model's own."""
    accelerate: list[str] = field(default_factory=list)
    """Ways of `sfvlm.encoder.accelerate`, such as int8: each model is measured like that too, beside itself."""
    image_size: int | None = None
    """Side of the photos in pixels; default the models', or the teacher's without any."""
    crop_pct: float | None = None
    """Share of the shortest side that a view shows; default what the teacher's own preprocessor shows."""
    class_indices: str | None = None
    """Classes of the labels 0, 1, ... when a data set has some of ImageNet's alone: 0,217,482."""
    class_names: Path | None = None
    """A file of class names: one a line, or JSON with or without numbers; default the data's own, or ImageNet's. They are
    matched to the data's classes by name or number where these have the same."""
    templates: Path | None = None
    """A text file of prompts with {c} or {} for the class name; default the data's own, or CLIP's 80."""
    limit: int | None = None
    """At most so many photos of each source, spread evenly."""
    batch_size: int = 64
    """Photos encoded at once."""
    workers: int = 0
    """Processes that decode photos; 0 decodes in between."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """A .json file to write after each source; the folder of that name gets a file a row, for `clip_benchmark build`."""
