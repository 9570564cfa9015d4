"""What the teacher says of a batch: from the cache of its outputs where that knows, else from the teacher itself."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .alignment import Objective, Target
from .bootstrap_options import BootstrapOptions
from .configuration import SparseFormerConfig
from .host_reader import HostReader
from .host_texts import Conversations
from .teacher_cache import TeacherCache
from .views import Selection, ViewBatch


class TeacherTargets:
    """A frozen teacher behind its cache. (ViewBatch, pixels (B, 3, H, W)) -> Target.

    Args:
        dense: The teacher's model, on the device of the pixels.
        patches: How many of its tokens are patches.
        objective: What is matched.
        cache: From `open_cache`.
        host: What reads the tokens, on the same device, where the objective needs one.
    """

    def __init__(
        self,
        dense: nn.Module,
        patches: int,
        objective: Objective,
        cache: TeacherCache | None,
        host: HostReader | None = None,
    ) -> None:
        self.dense, self.patches, self.objective, self.cache, self.host = dense, patches, objective, cache, host

    @torch.no_grad()
    def __call__(self, batch: ViewBatch, pixels: Tensor, conversations: Conversations | None = None) -> Target:
        cached = self.cache.get(batch["view"], batch["index"]) if self.cache else None
        if cached is not None:
            return Target(cached.to(pixels.device))
        output = self.dense(pixels)
        if self.cache:
            self.cache.put(batch["view"], batch["index"], output.pooled)
        states, tokens = output.hidden_states, None
        if self.objective.tokens:
            tokens = states[self.objective.layer][:, -self.patches :]
        if self.host is None or conversations is None:
            return Target(output.pooled, tokens)
        projected = self.host.project(self.host.select(states, states[0].shape[1] - self.patches))
        if not self.objective.answers:
            return Target(output.pooled, tokens, projected)
        texts = conversations.batch(batch["index"], batch["view"]).to(pixels.device)
        return Target(output.pooled, tokens, projected, texts, self.host.next_token_logits(projected, texts))


def open_cache(
    folder: Path, teacher_sha256: str, photos: Selection, config: SparseFormerConfig, options: BootstrapOptions
) -> TeacherCache | None:
    """The cache of a run, None where views do not repeat.

    Args:
        folder: Where it is, unless the options say so.
        teacher_sha256: Of the teacher's tensors.
        photos: The training ones.
        config: The student's configuration.
        options: Of the run.

    Raises:
        ValueError: The objective needs more than the cache keeps, or the folder holds a cache of something else.
    """
    if not options.cached_views:
        return None
    if options.objective.tokens or options.objective.needs_host:
        raise ValueError("cached_views keeps pooled outputs only; objectives of tokens need cached_views 0.")
    key = {
        "teacher_sha256": teacher_sha256,
        "photos": len(photos),
        "first": photos.key(0),
        "last": photos.key(len(photos) - 1),
        "seed": options.seed,
        "crop_scale": options.crop_scale,
        "image_size": config.image_size,
        "precision": options.precision,
    }
    return TeacherCache(options.teacher_cache or folder, key, options.cached_views, len(photos), config.embedding_size)
