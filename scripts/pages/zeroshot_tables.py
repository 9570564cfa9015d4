"""Tables of zero-shot classification and retrieval."""

from collections.abc import Callable, Mapping
from typing import Any

from .files import Results
from .forms import markdown, percent, with_interval
from .ways import CONTROLS

SETS = {
    "scenes, 100 names": "zeroshot/scenes.json",
    "Imagenette, 10 names": "zeroshot/imagenette.json",
    "further Flickr8k, R@5": "zeroshot/flickr8k-further.json",
    "imagenet-sample, 1000 names": "zeroshot/imagenet-sample.json",
}
VIT_SETS = {
    "imagenet-sample, top-1": "real-vit/imagenet-sample.json",
    "Imagenette, top-1": "real-vit/imagenette.json",
}
VIT_MODELS = {
    "teacher": "teacher, 196 tokens",
    "chosen@49": "**student, 49 tokens**",
    "res112@49": "the teacher at 112 px, trained as long",
    "lower resolution": "untrained: the photo at 112 px",
    "larger patch": "untrained: 32-px patches",
    "ToMe, early": "untrained: tokens merged in a third of the blocks (ToMe)",
    "ToMe, decreasing": "untrained: tokens merged, fewer from block to block (ToMe)",
    "ToMe, gradual": "untrained: tokens merged in every block (ToMe)",
}


def row_of(results: Results, file: str, begins: str) -> Mapping[str, Any] | None:
    """The metrics of the model whose name begins so; None where the file has none."""
    found = [row["metrics"] for row in results(file, "results") if row["model"].startswith(begins)]
    return found[0] if found else None


def _quality(found: Mapping[str, Any]) -> str:
    """Accuracy, or both recalls at 5."""
    if "acc1" in found:
        return percent(found["acc1"])
    there, back = (found[f"{what}_retrieval_recall@5"] for what in ("text", "image"))
    return f"{100 * there:.1f} / {percent(back)}"


def zeroshot(results: Results) -> str:
    """A row a model, a column a set."""
    sets = {name: file for name, file in SETS.items() if results.has(file)}
    lines = [["", "a block", "GMACs", *sets]]
    for begins, title in CONTROLS.items():
        rows = [row_of(results, file, begins) for file in sets.values()]
        if not any(rows):
            continue
        cells = ["" if row is None else _quality(row) for row in rows]
        spent = next(row for row in rows if row is not None)
        lines.append([title, f"{spent['mean_tokens']:.0f}", f"{spent['gmacs']:.3g}", *cells])
    return markdown(lines)


def real_vit(results: Results) -> str:
    """A row a model: top-1 through the teacher's own classifier, and how often its first choice is the teacher's."""
    lines = [
        [
            "49 tokens",
            "a block",
            "GMACs",
            *(f"{name}{what}" for name in VIT_SETS for what in (" (95 % interval)", ": as the teacher")),
        ]
    ]
    for begins, title in VIT_MODELS.items():
        rows = [row_of(results, file, begins) for file in VIT_SETS.values()]
        if any(row is None for row in rows):
            continue
        cells = [cell for row in rows if row for cell in (with_interval(row, "acc1"), percent(row["agreement"]))]
        spent = rows[0] or {}
        lines.append([title, f"{spent['mean_tokens']:.0f}", f"{spent['gmacs']:.3g}", *cells])
    return markdown(lines)


def clip_tiny(results: Results) -> str:
    """A row a set: what the shipped CLIP itself does."""
    lines = [["photos", "how many", "", "measured (95 % interval)"]]
    for name, file in SETS.items():
        if not results.has(file):
            continue
        found = row_of(results, file, "teacher")
        if found is None:
            raise ValueError(f"results/{file} has no teacher")
        count = f"{found['photos']:,}"
        if "acc1" in found:
            lines.append([name, count, "top-1", f"{with_interval(found, 'acc1')} %"])
            continue
        for what, way in (("text", "photo to caption"), ("image", "caption to photo")):
            recalls = " / ".join(f"{100 * found[f'{what}_retrieval_recall@{k}']:.1f}" for k in (1, 5, 10))
            lines.append([name.removesuffix(", R@5"), count, f"{way}, R@1 / 5 / 10", f"{recalls} %"])
    return markdown(lines)


ZEROSHOT_TABLES: dict[str, Callable[[Results], str]] = {
    "zeroshot": zeroshot,
    "clip-tiny": clip_tiny,
    "real-vit": real_vit,
}
