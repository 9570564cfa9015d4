"""What the teacher says of a batch: from the cache of its outputs where that knows, else from the teacher itself."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...dense.guide import Guide
from ...dense.maps import as_map
from ...encoder.blocks import attention_received
from ...encoder.configuration import SparseFormerConfig
from ...hosts.reader import HostReader
from ...photos.batches import ViewBatch
from ...teachers.open import TeacherOutput
from ..alignment import Target
from ..objective import Objective
from ..options import BootstrapOptions
from .cache import TeacherCache
from .conversations import Conversations


class TeacherTargets:
    """A frozen teacher behind its cache. (ViewBatch, pixels (B, 3, H, W)) -> Target.

    Args:
        dense: The teacher's model, on the device of the pixels.
        config: The student's configuration.
        objective: What is matched, its layer counted from the end.
        cache: From `open_cache`.
        host: What reads the tokens, on the same device, where the objective needs one.
        guide: Trained with the student, where the objective has a map: says in which units the teacher's is.
    """

    def __init__(
        self,
        dense: nn.Module,
        config: SparseFormerConfig,
        objective: Objective,
        cache: TeacherCache | None,
        host: HostReader | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.dense, self.config, self.objective, self.cache, self.host = dense, config, objective, cache, host
        self.guide = guide
        self.class_tokens = int(config.has_cls_token)
        self.chooses = bool(saliency_size(config, objective))
        self.pooled_size = config.embedding_size

    @torch.no_grad()
    def __call__(self, batch: ViewBatch, pixels: Tensor, conversations: Conversations | None = None) -> Target:
        cached = self.cache.get(batch["view"], batch["index"]) if self.cache else None
        if cached is not None:
            pooled, saliency = cached.to(pixels.device).tensor_split([self.pooled_size], dim=1)
            return Target(pooled, saliency=saliency if self.chooses else None)
        target = self.of(self.dense(pixels), batch, conversations)
        if self.cache:
            kept = [target.pooled] if target.saliency is None else [target.pooled, target.saliency]
            self.cache.put(batch["view"], batch["index"], torch.cat(kept, dim=1))
        return target

    @torch.no_grad()
    def of(self, output: TeacherOutput, batch: ViewBatch, conversations: Conversations | None = None) -> Target:
        """The target in what the teacher has said of a batch."""
        states = output.hidden_states
        target = Target(output.pooled)
        if self.chooses and self.objective.salient == "attention":
            target = replace(target, saliency=self._attention(states))
        if self.guide is not None:
            patches = self.dense.head.norm(states[-1])[:, self.class_tokens :]  # type: ignore[operator, union-attr]
            side = math.isqrt(patches.shape[1])
            target = replace(target, dense=self.guide.scale(as_map(patches, (side, side))))
        if self.objective.tokens:
            target = replace(target, tokens=states[self.objective.layer][:, self.class_tokens :])
        if self.host is None or conversations is None:
            return target
        projected = self.host.project(self.host.select(states, self.class_tokens))
        target = replace(target, projected=projected)
        if not self.objective.answers:
            return target
        texts = conversations.batch(batch["index"], batch["view"]).to(output.pooled.device)
        if not self.chooses or self.objective.salient == "attention":
            return replace(target, texts=texts, logits=self.host.next_token_logits(projected, texts))
        logits, words = self.host.read(projected, texts)
        patches = words[:, int(self.host.facts.reads_cls) :]
        shares = patches / patches.sum(dim=1, keepdim=True).clamp(min=1e-30)
        return replace(target, texts=texts, logits=logits, saliency=shares)

    def _attention(self, states: tuple[Tensor, ...]) -> Tensor:
        """The attention in the block whose output is matched: the host's, the objective's, or else the last."""
        layer = max(self.host.facts.layers) if self.host else self.objective.layer if self.objective.tokens else -1
        number = max(0, len(states) - 1 + layer)  # the first block stands in where its own input is matched
        block: Any = self.dense.blocks[number]  # type: ignore[index]
        query, key, _ = block.attn.heads(block.norm1(states[number]))
        return attention_received(query, key, self.class_tokens)


def open_cache(
    folder: Path, teacher_sha256: str, photos: Mapping[str, Any], config: SparseFormerConfig, options: BootstrapOptions
) -> TeacherCache | None:
    """The cache of a run, None where views do not repeat.

    Args:
        folder: Where it is, unless the options say so.
        teacher_sha256: Of the teacher's tensors.
        photos: By what the training ones are known, their number among it: `RunPhotos.trained`.
        config: The student's configuration.
        options: Of the run.

    Raises:
        ValueError: The objective needs more than the cache keeps, or the folder holds a cache of something else.
    """
    if not options.cached_views:
        return None
    objective = options.objective
    if objective.tokens or objective.needs_host or objective.dense:
        raise ValueError(
            "cached_views keeps no tokens; objectives of tokens, of maps and of a host need cached_views 0."
        )
    key = {
        "teacher_sha256": teacher_sha256,
        **photos,
        "seed": options.seed,
        "crop_scale": options.crop_scale,
        "image_size": config.image_size,
        "pixels": [list(config.image_mean), list(config.image_std), config.resample],
        "precision": options.precision,
    }
    patches = saliency_size(config, options.objective)
    if patches:
        key["saliency"] = patches
    width = config.embedding_size + patches
    return TeacherCache(options.teacher_cache or folder, key, options.cached_views, photos["photos"], width)


def saliency_size(config: SparseFormerConfig, objective: Objective) -> int:
    """The number of patches of which a student is to guess how salient they are; 0 where it guesses none."""
    return config.teacher_grid**2 if config.focusing == "chosen" and objective.saliency else 0
