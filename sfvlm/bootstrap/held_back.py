"""How near a student is to its teacher on photos it never trained on, in numbers that need no label."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..encoder import roi
from ..encoder.sparseformer import SparseFormerOutput
from ..hosts.reader import HostReader
from ..photos.batches import Selection
from .alignment import Target, selected
from .batches import Skips, held_back_batches, pixels_of
from .targets.conversations import Conversations
from .targets.teacher import TeacherTargets

MOST_AT_ONCE = 32  # photos


@dataclass(frozen=True)
class HeldBack:
    """What a student is measured by. student -> numbers.

    Attributes:
        photos: Held back.
        targets, conversations: What the teacher and the host say of them; no conversations without a host.
        at_once: Photos that a device has memory for.
        skips: Is told which photos cannot be read.
        accelerator: Of this process.
    """

    photos: Selection
    targets: TeacherTargets
    conversations: Conversations | None
    at_once: int
    skips: Skips
    accelerator: Accelerator

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> dict[str, float]:
        """Over all processes, which have to call it together.

        Returns:
            `cosine` of the pooled vectors; `agreement` of the classifier's first choice, where there is one; `dense`, the share of
            the teacher's map that a guide explains, where one is trained; `answer_agreement` of a host's words, where these are
            matched; `box_...` statistics of this process's part.
        """
        student.eval()
        host, config, at_once = self.targets.host, self.targets.config, min(MOST_AT_ONCE, self.at_once)
        cosines, agree, said, boxes, maps = [], [], [], [], []
        for batch in held_back_batches(self.photos, config, host, at_once, self.accelerator, self.skips):
            pixels = pixels_of(batch, config, self.accelerator)
            with self.accelerator.autocast():
                ours, theirs = student(pixels, output_hidden_states=host is not None), self.targets.dense(pixels)
                if host is not None:
                    said += _same_words(ours, self.targets.of(theirs, batch, self.conversations), host)
            if self.targets.guide is not None:
                target = self.targets.of(theirs, batch)
                assert target.dense is not None and ours.dense_map is not None
                maps.append(1 - (ours.dense_map.float() - target.dense.float()).square().mean(dim=(1, 2, 3)))
            cosines.append(F.cosine_similarity(ours.pooler_output.float(), theirs.pooled.float(), dim=-1))
            if theirs.logits is not None:
                agree.append((ours.logits.argmax(-1) == theirs.logits.argmax(-1)).float())
            boxes.append(ours.token_rois[-1])
        self.skips.tell()
        result = {"cosine": self._mean(cosines)}
        if config.num_classes:  # on every rank, also one without photos: the mean is a joint act
            result["agreement"] = self._mean(agree)
        if self.targets.guide is not None:
            result["dense"] = self._mean(maps)
        if self.targets.objective.answers:
            result["answer_agreement"] = self._mean(said)
        return result | (
            {f"box_{name}": value for name, value in roi.spread(torch.cat(boxes)).items()} if boxes else {}
        )

    def _mean(self, values: list[Tensor]) -> float:
        """Over the photos or words of all processes."""
        device = self.accelerator.device
        joined = torch.cat(values) if values else torch.zeros(0, device=device)
        total = torch.tensor([joined.sum().item(), len(joined)], device=device)
        total = self.accelerator.reduce(total, "sum")
        return (total[0] / total[1]).item()  # type: ignore[index]


def _same_words(student: SparseFormerOutput, target: Target, host: HostReader) -> list[Tensor]:
    """Whether the host's next word is the same from both towers, at each word of its answers (M,)."""
    if target.texts is None or target.logits is None:
        return []
    logits = host.next_token_logits(host.project(selected(student, host)), target.texts)
    return [(logits.argmax(-1) == target.logits.argmax(-1)).float()]
