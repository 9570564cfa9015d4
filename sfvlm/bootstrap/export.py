"""What a run began with, and its finished student as a Hugging Face folder that says so, and how well it does."""

import importlib.metadata
import json
import platform
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..encoder.configuration import CHOICE, SparseFormerConfig
from ..encoder.folder import image_processor
from ..encoder.sparseformer import SparseFormerModel
from ..hosts.host import Host
from ..teachers.open import Teacher
from ..teachers.report import InheritanceReport
from ..util.files import replacing_inside
from ..util.tensors import tensor_hash
from .metrics_log import rounded
from .options import BootstrapOptions
from .photos import RunPhotos

PACKAGES = ("sfvlm", "torch", "transformers", "accelerate", "timm", "open_clip_torch", "numpy", "pillow")
# What a resumed run must have been begun with, of the student's configuration.
ARCHITECTURE = (
    "image_size",
    "num_hidden_layers",
    "coarse_blocks",
    "glimpse_size",
    "box_zoom",
    "proportional_attention",
)


@dataclass(frozen=True)
class Origin:
    """What a run began with: one that resumes it has to begin with the same, and the finished model says it.

    Attributes:
        teacher: Of the student.
        config: The student's.
        trained_parameters: How many numbers of the student are trained, without those of LoRA.
        report: Where each tensor of the student came from.
        photos: By purpose.
        host: That reads the student's tokens, if any does.
        options: Of the run.
        accelerator: Of this process.
    """

    teacher: Teacher
    config: SparseFormerConfig
    trained_parameters: int
    report: InheritanceReport
    photos: RunPhotos
    host: Host | None
    options: BootstrapOptions
    accelerator: Accelerator

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a resumed run to end where an uninterrupted one would."""
        config = self.config
        return self.options.binding() | {
            "teacher_sha256": self.teacher.sha256,
            "num_tokens": config.num_tokens,
            "focusing": config.focusing,
            "host": None if self.host is None else self.host.source,
            "started_from": self.report.earlier,
            "trained_parameters": self.trained_parameters,
            "device": self.accelerator.device.type,
            "processes": self.accelerator.num_processes,
            **self.photos.fingerprint,
            **{name: getattr(config, name) for name in ARCHITECTURE},
            **{name: getattr(config, name) for name in CHOICE if config.focusing == "chosen"},
        }

    def facts(self, steps: int, skipped: int, seconds: float, result: dict[str, float]) -> dict[str, Any]:
        """What the finished model says of how it was made.

        Args:
            steps: Done.
            skipped: Photos that were passed over.
            seconds: That the run took since it was begun or resumed.
            result: Of the last evaluation on the held-back photos.
        """
        host = self.host if self.options.objective.needs_host else None
        return {
            "teacher": self.teacher.source,
            "teacher_sha256": self.teacher.sha256,
            "started_from": self.report.earlier,
            **self.photos.counts(),
            "photos_skipped": skipped,
            "photos_seen": steps * self.options.batch_size,
            "seconds_of_last_run": round(seconds, 1),
            "host": None if host is None else {"source": host.source, "layers": self.config.aligned_layers},
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "options": self.options.to_dict(),
            "held_back_evaluation": rounded(result),
        }


def export_student(model: SparseFormerModel, out: Path, report: InheritanceReport, facts: dict[str, Any]) -> None:
    """Writes the model, preprocessor, inheritance report, `bootstrap.json` and model card into `out`, whole files only."""
    described = facts | {
        "sha256": tensor_hash(model.state_dict()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    with replacing_inside(out) as folder:
        model.save_pretrained(folder)
        image_processor(model.config).save_pretrained(folder)
        report.save(folder)
        (folder / "bootstrap.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        card = model_card(model.config, report, described)
        (folder / "README.md").write_text(card, encoding="utf-8", errors="replace")  # names of files may be no UTF-8


def model_card(config: SparseFormerConfig, report: InheritanceReport, facts: dict[str, Any]) -> str:
    """A model card: what the model was made from, and how well it does, in numbers measured at the end of the run."""
    evaluation = "\n".join(f"| {name} | {value} |" for name, value in facts["held_back_evaluation"].items())
    photos = "\n".join(f"- {source}" for source in facts["photos"])
    measured = f"{facts['photos_held_back']} photos held back from training"
    if not facts["photos_held_back"]:
        measured = "a photo it was trained on, for none was held back"
    earlier = f", going on from `{report.earlier}`" if report.earlier else ""
    return f"""---
library_name: sfvlm
pipeline_tag: image-feature-extraction
tags: [sparseformer, vision, distillation]
---

# SparseFormer of {config.num_tokens} tokens

Bootstrapped from `{facts["teacher"]}` (tensors sha256 `{facts["teacher_sha256"][:16]}`) with the {config.focusing} focusing
stage{earlier}, on {facts["photos_seen"]} views of {facts["photos_read"]} unlabelled photos. No label and no caption was used.

```python
import sfvlm
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("path/of/this/folder").eval()
```

## What it kept of the teacher

On {measured} (cosine of the pooled vectors; share of equal first choices of the
teacher's classifier, where it has one; box statistics in fractions of the photo):

| measure | value |
|---|---|
{evaluation}

`python eval/zeroshot.py --model . --teacher {shlex.quote(facts["teacher"])} --data YOUR_DATA --controls` measures it on labelled photos.

## What it was made from

Photos:

{photos}

Parameters:

```
{report.summary()}
```

Options, versions and hashes: `bootstrap.json`; the origin of every tensor: `inheritance.json`; the curve: `metrics.jsonl`.

## Limits

It imitates one teacher on photos like those above; elsewhere it is untested. It inherits the teacher's licence terms and biases.
"""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
