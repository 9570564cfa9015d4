"""One pass over photos: what a teacher, a student or a control says of each.

    photos -> EvaluationViews -> encode_all -> Encoded: pooled (N, E), logits (N, K), labels, captions

Shapes: B batch, N photos, K classes, E width of the shared space.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..encoder.sparseformer import SparseFormerModel
from ..photos.decode import UnreadablePhoto
from ..photos.sources import Photos
from ..photos.views import check_crop, evaluation_view, normalize
from ..teachers.open import TeacherOutput
from ..util.subsets import spread
from .metrics import (
    Encoded,
)


class Student(nn.Module):
    """A SparseFormer at one budget, speaking as its teacher does: (B, 3, H, W) -> TeacherOutput."""

    def __init__(self, model: SparseFormerModel, num_tokens: int) -> None:
        super().__init__()
        self.model, self.num_tokens, self.has_cls_token = model, num_tokens, model.config.has_cls_token

    def forward(self, pixels: Tensor) -> TeacherOutput:
        output = self.model(pixels, num_tokens=self.num_tokens, output_hidden_states=True)
        return TeacherOutput(output.pooler_output, output.logits, output.hidden_states)


class EvaluationViews(Dataset[dict[str, Any]]):
    """The centres of photos, with labels and captions; broken photos give a reason instead of pixels.

    Args:
        photos: From `open_photos`.
        image_size: Side of the views.
        limit: At most so many, spread evenly over all: photos are often sorted by class.
        crop_pct: Share of the shortest side that the view shows.
        squash: Whether the models see photos squashed to the square.
        interpolation, rounding: As `evaluation_view` takes them.
    """

    def __init__(
        self,
        photos: Photos,
        image_size: int,
        limit: int | None = None,
        crop_pct: float = 1.0,
        *,
        squash: bool = False,
        interpolation: Image.Resampling = Image.Resampling.BICUBIC,
        rounding: str = "even",
    ) -> None:
        check_crop(crop_pct)  # here, because from another process an error comes with all its lines
        self.photos = photos
        self.view = partial(
            evaluation_view,
            image_size=image_size,
            crop_pct=crop_pct,
            interpolation=interpolation,
            squash=squash,
            rounding=rounding,
        )
        self.indices = spread(len(photos), limit)
        if not self.indices:
            raise ValueError(f"limit is {limit}; an evaluation needs at least 1 photo.")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = self.indices[item]
        try:
            photo = self.photos[index]
        except UnreadablePhoto as error:
            return {"key": error.key, "reason": error.reason}
        pixels = self.view(photo.image)  # (3, S, S) uint8
        said = {"key": photo.key, "label": photo.label, "captions": photo.captions, "unread": photo.unread}
        return {"index": index, "pixels": pixels, **said}


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
        unread=tuple({"key": view["key"], **view["unread"]} for view in read if view["unread"]),
    )
