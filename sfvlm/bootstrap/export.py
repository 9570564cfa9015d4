"""Writes a finished student as a Hugging Face folder, with where it came from and how well it does."""

import importlib.metadata
import json
import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..encoder.configuration import SparseFormerConfig
from ..encoder.folder import image_processor
from ..encoder.sparseformer import SparseFormerModel
from ..teachers.report import InheritanceReport
from ..util.files import replacing_inside
from ..util.tensors import tensor_hash

PACKAGES = ("sfvlm", "torch", "transformers", "accelerate", "timm", "open_clip_torch", "numpy", "pillow")


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
