"""Trains `clip-tiny`: a small CLIP on real photos and rendered scenes.

    features   every photo through the ImageNet transformer once: class tokens, and its guesses over 1000 classes
    text       the text tower learns to name what the frozen image tower sees (arXiv 2111.07991 calls it locked-image tuning)
    both       the later half of the image tower learns too, scenes above all

Objectives: captions against photos (contrastive); the transformer's guesses as soft targets over class names, which
reach classes no photo here shows; the transformer's classifier rows as if they were photos of their classes; scenes against
their 100 class names; and, on scenes, which thing covers a patch, read from the patch tokens that a LLaVA will read.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTokenizer

from sfvlm.evaluate.texts import fill, imagenet_names, imagenet_templates
from sfvlm.photos.batches import EpochSampler, Selection
from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.scene_texts import CLASS_NAMES, COLORS, SHAPES, class_prompt
from sfvlm.photos.sources import names_hash
from sfvlm.photos.views import evaluation_view, normalize, training_view
from sfvlm.teachers.open import Teacher, open_teacher
from sfvlm.util.devices import usable_device
from sfvlm.util.files import write_text

from .clip_model import image_processor, new_clip, train_tokenizer
from .llava_model import LAYER
from .loop import Stage, begin, train
from .sources import PHOTOS, SCENES, VISION_TRANSFORMER, Data, RecipeOptions, center_views, scenes_of

HALF = (0.5, 0.5, 0.5)
THINGS = (*SHAPES, *"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
GRID = 14


@dataclass(frozen=True)
class ClipOptions(RecipeOptions):
    """Train the shipped CLIP."""

    out: Path = Path("runs/clip-tiny")
    """Folder to write; also holds checkpoints. An interrupted run continues from them."""
    text_steps: int = 800
    """Steps of the text tower alone."""
    both_steps: int = 200
    """Steps of both towers."""
    text_batch: int = 192
    """Photos a step while the image tower is frozen."""
    both_batch: int = 96
    """Photos a step while it learns."""
    tuned_blocks: int = 6
    """Last blocks of the image tower that learn."""


def build_clip(options: ClipOptions) -> Path:
    """Trains from the newest checkpoint in `out`, or from nothing, and writes the folder `out/model`.

    Raises:
        ValueError: `out` holds a run of another recipe, or something of `data` is missing or damaged.
    """
    torch.manual_seed(options.seed)
    data = Data(options.data)
    device = usable_device(options.device)
    teacher = open_teacher(f"timm:vit_tiny_patch16_224:{data.path(VISION_TRANSFORMER)}")
    photos = data.training_photos(PHOTOS, options.scenes)
    begin(options.out, options.shared(photos) | {"teacher_sha256": teacher.sha256})
    tokenizer = train_tokenizer([*data.captions(), *_prompts()], options.vocabulary)
    features = photo_features(teacher, photos, options, device)
    some = torch.stack([_center(photos, index) for index in range(0, len(photos), max(1, len(photos) // 64))])
    clip: Any = new_clip(teacher.model, tokenizer, features.pooled.mean(0), normalize(some, HALF, HALF))
    learner = ClipLearner(clip, tokenizer, teacher, features, options.autocast).to(device)
    text = Stage("text", options.text_steps, {"clip.text": 1e-3, "clip.logit_scale": 1e-3, "clip.visual": 1e-4})
    texts = partial(text_batches, photos, options)
    settings = {"precision": options.precision, "batch": options.text_batch}
    train(text, learner, texts, learner.text_loss, options.out, device, settings)
    first = clip.config.vision_config.num_hidden_layers - options.tuned_blocks
    layers = {
        f"clip.vision_model.encoder.layers.{layer}.": 1e-4 for layer in range(first, first + options.tuned_blocks)
    }
    rates = {"clip.text": 3e-4, "clip.logit_scale": 1e-3, "clip.visual": 3e-4, "clip.vision_model.post": 1e-4}
    both = Stage("both", options.both_steps, rates | layers | {"local": 1e-3}, save_every=50)
    views = partial(photo_batches, photos, options)
    settings = {"precision": options.precision, "batch": options.both_batch}
    train(both, learner, views, learner.both_loss, options.out, device, settings)
    folder = options.out / "model"
    clip.half().float().save_pretrained(folder)  # as it will be shipped: what is trained on it sees the same tower
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Features:
    """What the ImageNet transformer says of every training photo, and what is said of the photo."""

    pooled: Tensor  # (photos, D) class tokens after the last norm
    guesses: Tensor  # (photos, 1000) log-probabilities, half precision
    captions: list[tuple[str, ...]]
    labels: Tensor  # (photos,) a scene's class, or -1


@torch.no_grad()
def photo_features(teacher: Teacher, photos: Selection, options: ClipOptions, device: torch.device) -> Features:
    """One pass over the photos, kept in `out/features.npz`."""
    file = options.out / "features.npz"
    key = f"{teacher.sha256} {names_hash(photos)}"
    described = options.out / "features.json"
    if not (described.exists() and json.loads(described.read_text())["key"] == key):
        described.unlink(missing_ok=True)  # what it describes is about to change
        model = teacher.model.to(device).eval()
        pooled, guesses, captions, labels = [], [], [], []
        for batch in center_views(photos, options.workers):
            pixels = torch.stack([item["pixels"] for item in batch]).to(device)
            said = model(normalize(pixels, HALF, HALF))
            pooled.append(model.head.norm(said.hidden_states[-1][:, 0]).cpu().numpy())
            guesses.append(said.logits.log_softmax(-1).half().cpu().numpy())
            captions += [item["captions"] for item in batch]
            labels += [item["label"] if item["key"].startswith(SCENES) else -1 for item in batch]
        np.savez(file, pooled=np.concatenate(pooled), guesses=np.concatenate(guesses), labels=np.array(labels))
        write_text(described, json.dumps({"key": key, "captions": captions}))
    saved = np.load(file)
    captions = [tuple(texts) for texts in json.loads(described.read_text())["captions"]]
    as_tensor = torch.from_numpy
    return Features(as_tensor(saved["pooled"]), as_tensor(saved["guesses"]), captions, as_tensor(saved["labels"]))


def _center(photos: Selection, index: int) -> Tensor:
    return evaluation_view(photos[index].image, 224)


class TrainingViews(Dataset[dict[str, Tensor]]):
    """Photos as the image tower learns from them: crops and flips of photos; scenes as they are, with their patches named."""

    def __init__(self, photos: Selection, seed: int) -> None:
        self.photos, self.seed = photos, seed

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = item
        patches = torch.full((2, GRID * GRID), -1)
        try:
            photo = self.photos[index]
        except UnreadablePhoto:
            return {
                "pixels": torch.zeros(3, 224, 224, dtype=torch.uint8),
                "index": torch.tensor(-1),
                "patches": patches,
            }
        if scenes_of(self.photos, index):
            patches, pixels = patch_labels(photo.meta["objects"]), evaluation_view(photo.image, 224)
        else:
            pixels = training_view(photo.image, 224, random.Random(f"{self.seed} {epoch} {index}"), scale=(0.6, 1.0))
        return {"pixels": pixels, "index": torch.tensor(index), "patches": patches}


def patch_labels(objects: list[dict[str, Any]]) -> Tensor:
    """Which thing, and which colour, covers the centre of each patch: (2, patches), 0 for the background."""
    labels = torch.zeros(2, GRID, GRID, dtype=torch.long)
    centers = (torch.arange(GRID) + 0.5) / GRID
    for item in objects:
        x1, y1, x2, y2 = item["box"]
        rows, columns = (centers >= y1) & (centers <= y2), (centers >= x1) & (centers <= x2)
        covered = rows[:, None] & columns[None, :]
        labels[0][covered] = 1 + THINGS.index(item["text"] or item["shape"])
        labels[1][covered] = 1 + list(COLORS).index(item["color"])
    return labels.flatten(1)


def text_batches(photos: Selection, options: ClipOptions, step: int) -> Iterator[dict[str, Tensor]]:
    """Numbers of photos alone: their features are known."""
    sampler = EpochSampler(len(photos), options.text_batch, options.seed, start_step=step)
    for number, batch in enumerate(sampler, start=step):
        yield {"index": torch.tensor([index for _, index in batch]), "step": torch.tensor(number)}


def photo_batches(photos: Selection, options: ClipOptions, step: int) -> Iterator[dict[str, Tensor]]:
    """Views of photos, their numbers and what covers their patches."""
    sampler = EpochSampler(len(photos), options.both_batch, options.seed + 1, start_step=step)
    views = TrainingViews(photos, options.seed)
    loader = DataLoader(views, batch_sampler=sampler, num_workers=options.workers)  # type: ignore[arg-type]
    for number, batch in enumerate(loader, start=step):
        yield batch | {"step": torch.tensor(number)}


class ClipLearner(nn.Module):
    """The CLIP with its objectives."""

    mean: Tensor
    noise: Tensor
    class_features: Tensor

    def __init__(
        self,
        clip: Any,
        tokenizer: CLIPTokenizer,
        teacher: Teacher,
        features: Features,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.clip, self.tokenizer, self.features, self.precision = clip, tokenizer, features, precision
        width = clip.config.vision_config.hidden_size
        self.local = nn.Linear(width, len(THINGS) + len(COLORS) + 2)  # thrown away after training
        self.names, self.templates = imagenet_names(), imagenet_templates()
        classifier = teacher.model.head.classifier
        assert classifier is not None
        rows = classifier.weight.detach() - classifier.weight.detach().mean(0)
        spread = (features.pooled - features.pooled.mean(0)).norm(dim=-1).mean()
        self.register_buffer("class_features", spread * F.normalize(rows, dim=-1), persistent=False)  # (1000, D)
        self.register_buffer("mean", features.pooled.mean(0), persistent=False)
        self.register_buffer("noise", 0.1 * features.pooled.std(0), persistent=False)

    def text_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Image features as the ImageNet transformer has them, a little noise added."""
        index = batch["index"].cpu()
        generator = self._generator(batch)
        pooled = self.features.pooled[index].to(self.mean) - self.mean
        pooled = pooled + self.noise * torch.randn(pooled.shape, generator=generator).to(pooled)
        return self._objectives(self._project(pooled), index, generator)

    def both_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        known = batch["index"] >= 0
        index = batch["index"][known].cpu()
        with self.precision():
            said = self.clip.vision_model(normalize(batch["pixels"][known], HALF, HALF), output_hidden_states=True)
        parts = self._objectives(self._project(said.pooler_output.float()), index, self._generator(batch))
        patches = batch["patches"][known].transpose(1, 2)  # (B, patches, 2)
        scene = patches[:, 0, 0] >= 0
        if scene.any():
            tokens = said.hidden_states[LAYER][scene][:, 1:].float()
            things, colors = self.local(tokens).split([len(THINGS) + 1, len(COLORS) + 1], dim=-1)
            thing, color = patches[scene].unbind(-1)
            parts["things"] = 0.5 * _balanced(things, thing)
            parts["colors"] = 0.25 * _balanced(colors, color)
        return parts

    def _objectives(self, images: Tensor, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Unit vectors (B, E) of the photos `index` (B,) to the parts of the loss."""
        scale = self.clip.logit_scale.exp().clamp(max=100.0)
        captions = [self.features.captions[number] for number in index.tolist()]
        captioned = torch.tensor([bool(texts) for texts in captions])
        chosen = [texts[_pick(len(texts), generator)] for texts in captions if texts]
        labels = self.features.labels[index]

        guesses = self.features.guesses[index].float()
        best = guesses[labels < 0].argmax(-1)
        classes = torch.cat([best, torch.randint(1000, (96,), generator=generator)]).unique()
        prompts = [
            fill(self.templates[_pick(len(self.templates), generator)], self.names[number]) for number in classes
        ]
        scene_prompts = [class_prompt(name) for name in CLASS_NAMES]
        # Apart, because each is filled up to its longest.
        prompts_, scenes_ = self._encode(prompts), self._encode(scene_prompts)

        parts: dict[str, Tensor] = {}
        if chosen:
            matches = scale * images[captioned] @ self._encode(chosen).T
            target = torch.arange(len(chosen), device=matches.device)
            parts["captions"] = 0.5 * (F.cross_entropy(matches, target) + F.cross_entropy(matches.T, target))
        photo = labels < 0
        if photo.any():
            soft = guesses[photo][:, classes].softmax(-1).to(images)
            parts["classes"] = F.cross_entropy(scale * images[photo] @ prompts_.T, soft)
        rows = self._project(self.class_features[classes.to(self.mean.device)])
        target = torch.arange(len(classes), device=rows.device)
        parts["rows"] = 0.5 * F.cross_entropy(scale * rows @ prompts_.T, target)
        if not photo.all():
            parts["scenes"] = 0.5 * F.cross_entropy(
                scale * images[~photo] @ scenes_.T, labels[~photo].to(images.device)
            )
        return parts

    def _project(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.clip.visual_projection(pooled), dim=-1)

    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
        device = self.mean.device
        with self.precision():
            said = self.clip.text_model(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
        return F.normalize(self.clip.text_projection(said.pooler_output.float()), dim=-1)

    def _generator(self, batch: dict[str, Tensor]) -> torch.Generator:
        return torch.Generator().manual_seed(int(batch["step"]))


def _balanced(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in which the background, most of a scene, counts as much as all things together."""
    losses = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
    thing = labels.flatten() > 0
    return 0.8 * losses[thing].mean() + 0.2 * losses[~thing].mean()


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _prompts() -> list[str]:
    """Class names in sentences, for the tokenizer."""
    names = imagenet_names()
    return [f"a photo of a {name}." for name in names] + 20 * [class_prompt(name) for name in CLASS_NAMES]
