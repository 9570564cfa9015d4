"""Zero-shot evaluation: photos and texts to classification, retrieval, and how near a model stays to its teacher.

    photos -> encode_all -> pooled (N, E), logits (N, K) --+
                                                           +-> classify | retrieve, and fidelity -> numbers by name
    names, templates -> build_classifier -> (E, K) --------+

Names of metrics and result files are those of CLIP_benchmark; all metrics are shares from 0 to 1.
Shapes: B batch, N photos, T texts, K classes, E width of the shared space.
"""

import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoints import write_text
from .decode import UnreadablePhoto
from .images import Photos, ScenePhotos, open_photos
from .scenes import CLASS_NAMES
from .sparseformer import SparseFormerModel
from .teachers import TeacherOutput
from .views import evaluation_view, normalize

RECALLS = (1, 5, 10)

Task = Literal["auto", "classification", "retrieval", "fidelity"]
Template = str | Callable[[str], str]
Numbers = dict[str, float]
Row = dict[str, Any]  # CLIP_benchmark's six keys: dataset, model, pretrained, task, metrics, language


class Student(nn.Module):
    """A SparseFormer at one budget, speaking as its teacher does: (B, 3, H, W) -> TeacherOutput."""

    def __init__(self, model: SparseFormerModel, num_tokens: int) -> None:
        super().__init__()
        self.model, self.num_tokens, self.has_cls_token = model, num_tokens, model.config.has_cls_token

    def forward(self, pixels: Tensor) -> TeacherOutput:
        output = self.model(pixels, num_tokens=self.num_tokens, output_hidden_states=True)
        return TeacherOutput(output.pooler_output, output.logits, output.hidden_states)


def open_student(folder: str | Path) -> SparseFormerModel:
    """Opens a SparseFormer folder, strictly.

    Raises:
        ValueError: It is no such folder, or its tensors are not those of its configuration.
    """
    config = Path(folder) / "config.json"
    kind = json.loads(config.read_text()).get("model_type") if config.is_file() else None
    if kind != "sparseformer":
        found = f"its config.json says {kind!r}" if config.is_file() else "it holds no config.json"
        raise ValueError(f"{folder} is no SparseFormer folder: {found}.")
    try:
        opened: Any = SparseFormerModel.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # readers of damaged files raise their own kinds
        raise ValueError(f"The SparseFormer in {folder} cannot be opened: {str(error).splitlines()[0]}") from error
    model, info = opened
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys and name != "error_msgs"}
    if wrong:
        problems = "; ".join(f"{name.replace('_', ' ')}: {', '.join(keys[:6])}" for name, keys in wrong.items())
        raise ValueError(f"The tensors in {folder} do not fit its configuration ({problems}).")
    return model.eval()


@dataclass(frozen=True)
class Encoded:
    """What a model says of the photos that can be read, in their order."""

    pooled: Tensor  # (N, E) float32, not normalised
    logits: Tensor | None  # (N, K) of the model's own classifier
    index: Tensor  # (N,) of each photo among all
    labels: tuple[int | None, ...]
    captions: tuple[tuple[str, ...], ...]
    skipped: tuple[dict[str, str], ...]  # {"key", "reason"} of each broken photo


class EvaluationViews(Dataset[dict[str, Any]]):
    """The centres of photos, with labels and captions; broken photos give a reason instead of pixels.

    Args:
        photos: From `open_photos`.
        image_size: Side of the views.
        limit: At most so many, spread evenly over all: photos are often sorted by class.
        crop_pct: Share of the shortest side that the view shows.
    """

    def __init__(self, photos: Photos, image_size: int, limit: int | None = None, crop_pct: float = 1.0) -> None:
        self.photos, self.image_size, self.crop_pct = photos, image_size, crop_pct
        count = len(photos) if limit is None else min(limit, len(photos))
        if count < 1:
            raise ValueError(f"limit is {limit}; an evaluation needs at least 1 photo.")
        self.indices = [number * len(photos) // count for number in range(count)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = self.indices[item]
        try:
            photo = self.photos[index]
        except UnreadablePhoto as error:
            return {"key": error.key, "reason": error.reason}
        pixels = evaluation_view(photo.image, self.image_size, self.crop_pct)  # (3, S, S) uint8
        return {"index": index, "pixels": pixels, "label": photo.label, "captions": photo.captions}


@torch.no_grad()
def encode_all(
    model: Callable[[Tensor], TeacherOutput],
    views: EvaluationViews,
    mean_std: tuple[Sequence[float], Sequence[float]],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    workers: int = 0,
    title: str = "photos",
) -> Encoded:
    """One pass over the photos: a teacher, control or `Student` on `device` to what it says of each.

    Raises:
        ValueError: No photo can be read.
    """
    pooled, logits, read, skipped = [], [], [], []
    loader = DataLoader(views, batch_size, collate_fn=list, num_workers=workers)
    with tqdm(total=len(views), desc=title, unit="photo") as bar:
        for batch in loader:
            good = [view for view in batch if "pixels" in view]
            skipped += [view for view in batch if "pixels" not in view]
            if good:
                pixels = torch.stack([view.pop("pixels") for view in good]).to(device)
                output = model(normalize(pixels, *mean_std))
                pooled.append(output.pooled.float().cpu())
                logits += [] if output.logits is None else [output.logits.float().cpu()]
            read += good
            bar.update(len(batch))
    if not read:
        raise ValueError(f"None of the {len(views)} photos is readable; {skipped[0]['key']}: {skipped[0]['reason']}.")
    return Encoded(
        pooled=torch.cat(pooled),
        logits=torch.cat(logits) if logits else None,
        index=torch.tensor([view["index"] for view in read]),
        labels=tuple(view["label"] for view in read),
        captions=tuple(view["captions"] for view in read),
        skipped=tuple(skipped),
    )


def classification_metrics(scores: Tensor, labels: Tensor) -> Numbers:
    """Scores (N, K), labels (N,) -> `acc1`, `acc5` (from 5 classes), `mean_per_class_recall` over classes present."""
    hits = scores.argmax(dim=-1) == labels
    numbers = {"acc1": hits.double().mean().item()}
    if scores.shape[-1] >= 5:
        numbers["acc5"] = topk_accuracy(scores, labels, 5)
    size = int(labels.max()) + 1
    count, right = torch.bincount(labels, minlength=size), torch.bincount(labels[hits], minlength=size)
    return numbers | {"mean_per_class_recall": (right[count > 0].double() / count[count > 0]).mean().item()}


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of photos whose label is among the k best classes: (N, K), (N,)."""
    return (scores.topk(k, dim=-1).indices == labels[:, None]).any(-1).double().mean().item()


def confidence_interval(hits: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of N yes-or-no outcomes."""
    count, mean = len(hits), hits.double().mean().item()
    # Drawing N of N outcomes with replacement and counting the yeses is drawing from this distribution.
    means = np.random.default_rng(seed).binomial(count, mean, size=resamples) / count
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def retrieval_metrics(
    images: Tensor, texts: Tensor, owner: Tensor, ks: Iterable[int] = RECALLS, chunk: int = 1024
) -> Numbers:
    """Share of queries with one of their own among the k nearest; a k larger than the candidates is left out.

    Args:
        images: (N, E); one without a text of its own counts as a miss.
        texts: (T, E).
        owner: (T,) the image each text belongs to.
        ks: The k of `image_retrieval_recall@k` (texts ask for images) and `text_retrieval_recall@k` (images for texts).
        chunk: Queries scored at once.
    """
    ks = tuple(ks)
    asked = {
        "image": (texts, images, lambda found, start: found == owner[start : start + len(found), None]),
        "text": (images, texts, lambda found, start: owner[found] == torch.arange(start, start + len(found))[:, None]),
    }
    numbers: Numbers = {}
    for what, (queries, candidates, is_own) in asked.items():
        fitting = [k for k in ks if k <= len(candidates)]
        hits = [
            is_own(found, number * chunk)  # (chunk, k)
            for number, found in enumerate(nearest(queries, candidates, max(fitting, default=1), chunk))
        ]
        own = torch.cat(hits)
        numbers |= {f"{what}_retrieval_recall@{k}": own[:, :k].any(-1).double().mean().item() for k in fitting}
    return numbers


def nearest(queries: Tensor, candidates: Tensor, k: int, chunk: int = 1024) -> list[Tensor]:
    """The k candidates of highest cosine, a chunk of queries at a time: (Q, E), (C, E) -> several (chunk, k)."""
    unit = F.normalize(candidates, dim=-1).T
    return [(F.normalize(part, dim=-1) @ unit).topk(k, dim=-1).indices for part in queries.split(chunk)]


def fidelity(student: Encoded, teacher: Encoded, choices: tuple[Tensor, Tensor] | None) -> Numbers:
    """Mean `cosine` of the pooled vectors, and `agreement`: the share of equal first choices (N,), if there are any.

    Raises:
        ValueError: The two were not made from the same photos, or live in spaces of different widths.
    """
    if not torch.equal(student.index, teacher.index):
        raise ValueError(
            f"A model read {len(student.index)} photos, its teacher {len(teacher.index)}: did they change meanwhile?"
        )
    if student.pooled.shape != teacher.pooled.shape:
        raise ValueError(
            f"The model's pooled vectors have {student.pooled.shape[1]} features, its teacher's "
            f"{teacher.pooled.shape[1]}: it was made from another teacher."
        )
    numbers = {"cosine": F.cosine_similarity(student.pooled, teacher.pooled, dim=-1).mean().item()}
    if choices is not None:
        numbers["agreement"] = (choices[0] == choices[1]).double().mean().item()
    return numbers


@torch.no_grad()
def build_classifier(
    encode_text: Callable[[Sequence[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[Template],
    classes_at_once: int = 16,
) -> Tensor:
    """Class names in templates to a linear classifier: unit vectors, averaged over templates, made unit again: (E, K).

    Args:
        encode_text: Texts -> (T, E).
        class_names: K of them; they need not be unique.
        templates: With `{c}` or `{}` where the name goes, or functions of the name.
        classes_at_once: Classes whose texts are encoded together.
    """
    columns = []
    starts = range(0, len(class_names), classes_at_once)
    for start in tqdm(starts, desc="classes", disable=len(starts) < 4):
        names = class_names[start : start + classes_at_once]
        features = encode_text([fill(template, name) for name in names for template in templates])
        features = F.normalize(features, dim=-1).unflatten(0, (len(names), len(templates)))  # (names, templates, E)
        columns.append(F.normalize(features.mean(dim=1), dim=-1))
    return torch.cat(columns).T


def fill(template: Template, name: str) -> str:
    """Puts a class name into a template; one without a place for it raises ValueError."""
    if callable(template):
        return template(name)
    if "{c}" not in template and "{}" not in template:
        raise ValueError(f"The template {template!r} has no {{c}} or {{}} where a class name could go.")
    return template.replace("{c}", name).replace("{}", name)


@dataclass
class TextEncoder:
    """A frozen text tower with its tokenizer: texts -> unit vectors (T, E), on the CPU."""

    tokenize: Callable[[list[str]], Any]
    tower: Callable[[Any], Tensor]
    device: str | torch.device = "cpu"
    batch_size: int = 256
    classifiers: dict[Any, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        starts = range(0, len(texts), self.batch_size)
        parts = [
            self.tower(self.tokenize(list(texts[start : start + self.batch_size])).to(self.device)) for start in starts
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    def classifier(self, class_names: tuple[str, ...], templates: tuple[Template, ...]) -> Tensor:
        """`build_classifier`, once for the same names and templates: (E, K)."""
        key = class_names, templates
        if key not in self.classifiers:
            self.classifiers[key] = build_classifier(self, class_names, templates)
        return self.classifiers[key]


def open_text_encoder(source: str, device: str | torch.device = "cpu") -> TextEncoder | None:
    """The text tower that belongs to a teacher's source; None for one without, such as timm's.

    Raises:
        ValueError: There is a text tower, but no tokenizer.
    """
    if source.startswith("timm:"):
        return None
    if source.startswith(("open_clip:", "local-dir:")):
        import open_clip

        name, weights = source.split(":", 2)[1:] if source.startswith("open_clip:") else (source, None)
        clip: Any = open_clip.create_model(name, pretrained=weights).eval().requires_grad_(False).to(device)
        return TextEncoder(open_clip.get_tokenizer(name), clip.encode_text, device)
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(source)
    if config.model_type not in ("clip", "siglip"):
        return None
    files = ("tokenizer.json", "vocab.json", "spiece.model")
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in files):
        raise ValueError(f"The folder {source} holds a text tower but no tokenizer: save the model's own into it.")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"The tokenizer of {source!r} cannot be opened: {str(error).splitlines()[0]}") from error
    model: Any = AutoModel.from_pretrained(source).eval().requires_grad_(False).to(device)
    siglip = config.model_type == "siglip"  # trained with its texts filled up to the full length, and no mask

    def tokenize(texts: list[str]) -> Any:
        length = config.text_config.max_position_embeddings
        padding = "max_length" if siglip else True
        tokens = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        tokens.pop("token_type_ids", None)
        if siglip:
            tokens.pop("attention_mask", None)
        return tokens

    def tower(tokens: Any) -> Tensor:
        features = model.get_text_features(**tokens)
        return features if isinstance(features, Tensor) else features.pooler_output

    return TextEncoder(tokenize, tower, device)


def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1000 class names, in the order of its labels. Not unique: two names stand for two classes each."""
    return tuple(_open_clip().IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[Template, ...]:
    """The 80 templates CLIP was published with."""
    return tuple(_open_clip().OPENAI_IMAGENET_TEMPLATES)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            "ImageNet's class names and templates come with open_clip: pip install sfvlm[eval]."
        ) from error
    return open_clip


def imagenet_indices(class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The ImageNet classes of folders that are named by WordNet ids (n01440764); None when they are not."""
    if not class_names or not all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        return None
    from timm.data.imagenet_info import ImageNetInfo

    place = {name: number for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return tuple(place[name] for name in class_names) if set(class_names) <= place.keys() else None


def open_evaluation_photos(source: str) -> Photos:
    """Opens photos with what labels there are: a folder's subfolders are its classes, if every photo is in one.

    Raises:
        ValueError: There are no photos.
    """
    try:
        return open_photos(source, labelled=True)
    except ValueError:
        return open_photos(source)


def class_names_of(photos: Photos) -> tuple[str, ...] | None:
    """The names the source itself gives its classes."""
    if all(isinstance(source, ScenePhotos) for source in photos.sources):
        return tuple(CLASS_NAMES)
    return photos.class_names


def mapped_labels(labels: Sequence[int | None], class_indices: Sequence[int] | None, classes: int) -> Tensor:
    """Labels of photos to columns of a classifier: (N,).

    Raises:
        ValueError: A photo has no label, or one outside the indices or the classifier.
    """
    if any(label is None for label in labels):
        raise ValueError(f"{sum(label is None for label in labels)} of {len(labels)} photos have no label.")
    given = torch.tensor([label for label in labels if label is not None])
    known = classes if class_indices is None else len(class_indices)
    if not 0 <= int(given.min()) <= int(given.max()) < known:
        what = f"the classifier has {classes} classes" if class_indices is None else f"--class-indices lists {known}"
        raise ValueError(f"The labels go from {int(given.min())} to {int(given.max())}, but {what}, counted from 0.")
    if class_indices is None:
        return given
    table = torch.tensor(class_indices)
    if not 0 <= int(table.min()) <= int(table.max()) < classes:
        raise ValueError(
            f"The class indices go from {int(table.min())} to {int(table.max())}; the classifier has {classes} classes."
        )
    return table[given]


def classify(
    encoded: Encoded, classifier: Tensor | None, class_indices: Sequence[int] | None
) -> tuple[Numbers, Tensor]:
    """Classification through a text classifier (E, K), or the model's own: numbers, and first choices (N,).

    With `class_indices` (label -> class), `acc1_restricted` chooses among the listed classes alone.

    Raises:
        ValueError: Labels do not fit, or there is no classifier of either kind.
    """
    scores = encoded.logits if classifier is None else F.normalize(encoded.pooled, dim=-1) @ classifier
    if scores is None:
        raise ValueError("The teacher has neither a text tower nor a classifier, so that photos cannot be classified.")
    labels = mapped_labels(encoded.labels, class_indices, scores.shape[-1])
    choices = scores.argmax(dim=-1)
    numbers = classification_metrics(scores, labels)
    numbers["acc1_low"], numbers["acc1_high"] = confidence_interval(choices == labels)
    if class_indices is not None:
        listed = torch.tensor(sorted(set(class_indices)))
        numbers["acc1_restricted"] = (listed[scores[:, listed].argmax(-1)] == labels).double().mean().item()
    return numbers, choices


def retrieve(encoded: Encoded, texts: Tensor, owner: Tensor) -> tuple[Numbers, Tensor]:
    """Retrieval between photos and captions (T, E) owned by photos (T,): numbers, each photo's first caption (N,)."""
    return retrieval_metrics(encoded.pooled, texts, owner), torch.cat(nearest(encoded.pooled, texts, 1))[:, 0]


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: the teacher, a `Student` or a control, with what is known of it already."""

    name: str
    pretrained: str  # where its weights come from
    module: nn.Module
    cost: Numbers  # tokens, mean_tokens, gmacs


@dataclass(frozen=True)
class Classes:
    """What labels mean, where the photos do not say it themselves."""

    names: tuple[str, ...] | None = None
    templates: tuple[Template, ...] | None = None
    indices: tuple[int, ...] | None = None  # label -> class of the names or of the teacher's classifier


def evaluate(
    candidates: Sequence[Candidate],
    views: EvaluationViews,
    mean_std: tuple[Sequence[float], Sequence[float]],
    text: Callable[[], TextEncoder | None],
    *,
    dataset: str = "photos",
    task: Task = "auto",
    classes: Classes | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> tuple[list[Row], tuple[dict[str, str], ...]]:
    """Measures all candidates on the same views, the first of which is the teacher: rows, and the broken photos.

    Raises:
        ValueError: The photos do not fit the task, or the candidates one another.
    """
    encode = partial(encode_all, views=views, mean_std=mean_std, batch_size=batch_size, device=device, workers=workers)
    teacher = encode(candidates[0].module, title=candidates[0].name)
    name, measure = choose_task(task, teacher, views.photos, text, classes or Classes())
    teacher_choices = None
    rows: list[Row] = []
    for candidate in candidates:
        encoded = encode(candidate.module, title=candidate.name) if rows else teacher
        # Before the task, which would only stumble over what this explains.
        near = fidelity(encoded, teacher, None)
        numbers, choices = measure(encoded)
        teacher_choices = teacher_choices if rows else choices
        if choices is not None and teacher_choices is not None:
            near = fidelity(encoded, teacher, (choices, teacher_choices))
        metrics = {**numbers, **near, **candidate.cost, "photos": len(encoded.index), "skipped": len(encoded.skipped)}
        rows.append(
            {
                "dataset": dataset,
                "model": candidate.name,
                "pretrained": candidate.pretrained,
                "task": name,
                "metrics": metrics,
                "language": "en",
            }
        )
    return rows, teacher.skipped


def choose_task(
    task: Task, teacher: Encoded, photos: Photos, text: Callable[[], TextEncoder | None], classes: Classes
) -> tuple[str, Callable[[Encoded], tuple[Numbers, Tensor | None]]]:
    """The task's name in result files, and what measures it: labels come first, then captions, then the teacher alone.

    Raises:
        ValueError: What the task needs is not there.
    """
    labelled = any(label is not None for label in teacher.labels)
    captioned = any(teacher.captions)
    has_classifier = teacher.logits is not None
    if task == "auto":
        can_classify = labelled and (has_classifier or text() is not None)
        task = "classification" if can_classify else "retrieval" if captioned and text() is not None else "fidelity"
    if task == "classification":
        if not labelled:
            raise ValueError(
                f"The photos of {', '.join(photos.origins)} have no labels: put each class into a folder of its own."
            )
        encoder = None if has_classifier else text()
        outputs = teacher.logits.shape[-1] if teacher.logits is not None else None
        names, indices = resolve_classes(class_names_of(photos), classes, outputs)
        classifier = None
        if encoder is not None and names is not None:
            templates = classes.templates or photos.templates or imagenet_templates()
            classifier = encoder.classifier(names, tuple(templates))
        name = "classification" if has_classifier else "zeroshot_classification"
        return name, partial(classify, classifier=classifier, class_indices=indices)
    if task == "retrieval":
        encoder = text()
        if not captioned or encoder is None:
            what = "The teacher has no text tower" if encoder is None else "The photos have no captions"
            raise ValueError(f"{what}, so that there is no retrieval to measure.")
        texts = encoder([caption for captions in teacher.captions for caption in captions])
        owner = torch.tensor([number for number, captions in enumerate(teacher.captions) for _ in captions])
        return "zeroshot_retrieval", partial(retrieve, texts=texts, owner=owner)
    return "fidelity", lambda encoded: ({}, None if encoded.logits is None else encoded.logits.argmax(-1))


def resolve_classes(
    own_names: tuple[str, ...] | None, classes: Classes, outputs: int | None
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """The names of the classifier's classes, and label -> class; None for a label that is its class.

    Names: those given, or the photos' own, or ImageNet's. Folders named by WordNet ids are ImageNet classes.

    Args:
        own_names: What the photos' source calls its classes.
        classes: What was given.
        outputs: Classes of the teacher's own classifier; None to make one from names.

    Raises:
        ValueError: The photos have so many classes, the classifier so many others.
    """
    indices = classes.indices or imagenet_indices(own_names or ())
    if outputs is None:
        names = classes.names or (imagenet_names() if indices or not own_names else own_names)
        outputs = len(names)
    else:
        names = None
        if indices is None and own_names and len(own_names) != outputs:
            raise ValueError(
                f"The photos have {len(own_names)} classes, the teacher's classifier {outputs}: say which they are "
                "with --class-indices, or measure without labels by --task fidelity."
            )
    return names, None if indices == tuple(range(outputs)) else indices


# What a table shows, in this order: metric, heading, and how a number is written.
COLUMNS = (
    ("tokens", "tokens", "{:.0f}"),
    ("mean_tokens", "a block", "{:.1f}"),
    ("gmacs", "GMACs", "{:.3g}"),
    ("acc1", "acc1", "{:.1%}"),
    ("acc1_low", "95 % from", "{:.1%}"),
    ("acc1_high", "to", "{:.1%}"),
    ("acc5", "acc5", "{:.1%}"),
    ("mean_per_class_recall", "recall", "{:.1%}"),
    ("acc1_restricted", "acc1 listed", "{:.1%}"),
    *((f"{what}_retrieval_recall@{k}", f"{what} R@{k}", "{:.1%}") for what in ("image", "text") for k in RECALLS),
    ("agreement", "agreement", "{:.1%}"),
    ("cosine", "cosine", "{:.3f}"),
)


def table(rows: Sequence[Row]) -> str:
    """Results as an aligned table, a row a model: what none of them has is left out."""
    columns = [column for column in COLUMNS if any(column[0] in row["metrics"] for row in rows)]
    lines = [["model", *(heading for _, heading, _ in columns)]]
    for row in rows:
        cells = [form.format(row["metrics"][name]) if name in row["metrics"] else "" for name, _, form in columns]
        lines.append([row["model"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def write_results(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> Path:
    """Writes all rows and `facts` to `path`, and each row alone to the folder of that name without its suffix.

    A row has the keys dataset, model, pretrained, task, metrics, language; `clip_benchmark build FOLDER` reads the
    folder, which is returned. Files are whole or absent; earlier rows of the folder that these do not replace stay.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = re.sub(r"[^\w.@-]+", "-", "_".join(row[key] for key in ("dataset", "pretrained", "model", "task")))
        write_text(folder / f"{name.strip('-')[-200:]}.json", json.dumps(row, indent=1) + "\n")
    packages = ("sfvlm", "torch", "transformers", "numpy", "pillow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"results": list(rows), **facts, "date": date, "versions": versions}
    write_text(path, json.dumps(content, indent=1) + "\n")
    return folder
