"""A linear probe: how much of a segmentation a frozen encoder's map holds. The same for every way, dense or sparse.

    maps (M, D, h, w) of frozen encoders, masks --> batch norm, 1 x 1 --> logits (B, classes, h, w) --> the mask's own size

Source: `BNHead` of DINOv2 (facebookresearch/dinov2, eval/segmentation/models/decode_heads/linear_head.py), AdamW with a learning rate
of 1e-3 and a weight decay of 1e-4, warmed up, then linearly to nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .maps import resized

IGNORED = 255  # of a mask: counts neither in the loss nor in a score


@dataclass(frozen=True)
class ProbeOptions:
    """How a probe is fitted.

    Attributes:
        epochs, batch_size: Photos of a set are seen so often, so many at once.
        learning_rate, weight_decay: Of AdamW.
        warm_up: Steps in which the rate rises.
        loss_side: Masks are made so large (square, nearest) for the loss, and logits enlarged to it bilinearly.
        seed: Of the weights, the order, and which photos are mirrored.
    """

    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warm_up: int = 50
    loss_side: int = 112
    seed: int = 0


class LinearHead(nn.Module):
    """Batch norm and a 1 x 1 classifier: (B, D, h, w) -> (B, classes, h, w). Classes of no photo keep their start."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Tensor) -> Tensor:
        return self.classifier(self.norm(maps))


def segmentation_loss(logits: Tensor, labels: Tensor, ignored: int = IGNORED) -> Tensor:
    """Cross-entropy at the labels' size: (B, classes, h, w), (B, H, W) -> scalar; 0 where every pixel is ignored."""
    enlarged = resized(logits.float(), (labels.shape[-2], labels.shape[-1]))
    total = F.cross_entropy(enlarged, labels, ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp(min=1)


def fit_probe(
    maps: Tensor,
    masks: Sequence[Tensor],
    num_classes: int,
    options: ProbeOptions | None = None,
    *,
    mirrored: Tensor | None = None,
    report: Callable[[int, float], None] | None = None,
) -> LinearHead:
    """Fits a head to maps of photos.

    Args:
        maps: (M, D, h, w), of photos that were squashed to the encoder's square; any floating type.
        masks: M of (H, W), integer class indices, 255 ignored; each of the whole photo, of any size.
        num_classes: Of the masks.
        options: By default, `ProbeOptions()`.
        mirrored: (M, D, h, w) of the same photos, mirrored: half of the time these are seen, with mirrored masks.
        report: Is told the epoch and its mean loss.

    Raises:
        ValueError: Maps and masks are not as many, or a mask has an index beyond the classes.
    """
    options = options or ProbeOptions()
    if len(maps) != len(masks) or (mirrored is not None and mirrored.shape != maps.shape):
        raise ValueError(f"There are {len(maps)} maps and {len(masks)} masks: a probe needs one mask a map.")
    labels = torch.stack([_at_side(mask, options.loss_side) for mask in masks])
    most = int(labels[labels != IGNORED].max()) if (labels != IGNORED).any() else 0
    if most >= num_classes:
        raise ValueError(
            f"A mask has the class {most}, and there are {num_classes}: 0 to {num_classes - 1}, or {IGNORED}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        head = LinearHead(maps.shape[1], num_classes).to(maps.device)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    batches = -(-len(maps) // options.batch_size)
    steps, step = options.epochs * batches, 0
    for epoch in range(options.epochs):
        losses = []
        for index in torch.randperm(len(maps), generator=generator).split(options.batch_size):
            mirror = mirrored is not None and bool(torch.rand(1, generator=generator) < 0.5)
            source = mirrored if mirrored is not None and mirror else maps
            wanted = labels[index].flip(2) if mirror else labels[index]
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * min(1.0, (step + 1) / options.warm_up) * (1 - step / steps)
            loss = segmentation_loss(head(source[index].float()), wanted.to(maps.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.detach())
        if report is not None:
            report(epoch, float(torch.stack(losses).mean()))
    return head.eval()


@torch.no_grad()
def predict(head: nn.Module, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Each pixel's class, by logits enlarged to the mask's own size: (B, D, h, w) -> (B, *size) int64."""
    return resized(head(maps.float()).float(), size).argmax(dim=1)


def _at_side(mask: Tensor, side: int) -> Tensor:
    """A mask of another size, by nearest neighbours: (H, W) -> (side, side) int64."""
    return F.interpolate(mask[None, None].float(), size=(side, side), mode="nearest-exact")[0, 0].long()
