"""Opens a teacher: the dense vision transformer a SparseFormer is bootstrapped from.

    transformers  a folder or hub id of a CLIP or SigLIP model, or of a LLaVA that holds one
    open_clip     `open_clip:ViT-B-16-quickgelu:/path/weights.safetensors`, or `local-dir:/path`
    timm          `timm:vit_base_patch16_224:/path/weights.safetensors`; without a file, from the hub

Whatever the format, the result is one plain vision transformer with one set of tensor names, so that the three formats of one
model give one student.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder.blocks import Block, Head, block_sizes
from ..encoder.configuration import SparseFormerConfig
from ..util.tensors import check_keys, tensor_hash
from ..zoo.names import resolve
from .formats import read_teacher


@dataclass(frozen=True)
class TeacherOutput:
    """What a student may be asked to match."""

    pooled: Tensor  # (B, E) after the projection, where there is one
    logits: Tensor | None  # (B, classes), for a teacher with a classifier
    hidden_states: tuple[Tensor, ...]  # L + 1 of (B, 1 + patches, D): the blocks' input, then each block's output
    places: Tensor | None = None  # (B, patches) which of the tokens each patch became a part of; None: each is one


class DenseTransformer(nn.Module):
    """A plain vision transformer: every patch a token. (B, 3, H, W) -> TeacherOutput.

    Args:
        config: The cortex fields describe the blocks and the head; `teacher_patch_size` and `teacher_grid` the patches.
    """

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.teacher_patch_size
        self.patch = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(width)) if config.has_cls_token else None
        count = config.teacher_grid**2 + config.has_cls_token
        self.positions = nn.Parameter(torch.zeros(count, width))
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(*block_sizes(config)) for _ in range(config.num_hidden_layers))
        self.head = Head(config)

    def embed(self, pixels: Tensor) -> Tensor:
        """The first block's input: (B, 3, H, W) -> (B, [1 +] patches, D); positions are interpolated to other sizes."""
        return self.place(self.patch(pixels))

    def place(self, tokens: Tensor) -> Tensor:
        """Puts positions and the class token to embedded patches: (B, D, h, w) -> (B, [1 +] h * w, D)."""
        side, extra = self.config.teacher_grid, int(self.config.has_cls_token)
        table = self.positions[extra:].T.reshape(1, -1, side, side)
        if tokens.shape[-2:] != (side, side):
            table = F.interpolate(table, size=tokens.shape[-2:], mode="bilinear", align_corners=False, antialias=False)
        tokens = (tokens + table).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            cls = (self.cls_token + self.positions[0]).expand(len(tokens), 1, -1)
            tokens = torch.cat([cls, tokens], dim=1)
        return self.pre_norm(tokens)

    def forward(self, pixels: Tensor) -> TeacherOutput:
        return self.run(self.embed(pixels))

    def run(self, tokens: Tensor) -> TeacherOutput:
        """All blocks and the head: (B, [1 +] patches, D) -> TeacherOutput."""
        hidden = [tokens]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        pooled, logits = self.head(hidden[-1])
        return TeacherOutput(pooled, logits, tuple(hidden))


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher, with what is needed to say where it came from."""

    model: DenseTransformer
    source: str
    sha256: str  # of its tensors, in canonical names: the same model in another format has the same one

    @property
    def config(self) -> SparseFormerConfig:
        return self.model.config


def open_teacher(source: str | Path, *, local_files_only: bool = False) -> Teacher:
    """Opens a teacher from a path, hub id or name of the zoo; the forms are listed at the head of this module.

    Raises:
        ValueError: The source is of no known form, has unknown tensors, lacks some, or cannot be reached.
    """
    name = str(source)
    config, tensors = read_teacher(str(resolve(name)), local_files_only)
    model = DenseTransformer(config)
    check_keys(tensors, model.state_dict(), f"teacher {name}")
    model.load_state_dict(tensors)
    return Teacher(model.eval().requires_grad_(False), name, tensor_hash(model.state_dict()))


def check_own_tower(teacher: Teacher, tower: Teacher) -> None:
    """Whether a teacher is a host's own tower, whatever head either has: a host's projector can read no other tokens.

    Args:
        teacher: As it was asked for.
        tower: The host's, opened as a teacher.

    Raises:
        ValueError: They differ; the first difference is named.
    """
    names = ("num_hidden_layers", "num_attention_heads", "hidden_act", "image_mean", "image_std")
    differ = [name for name in names if getattr(teacher.config, name) != getattr(tower.config, name)]
    ours = teacher.model.state_dict()
    for name, theirs in tower.model.state_dict().items():
        if name.startswith("head."):
            continue
        given = ours.get(name)
        # With room for 16 bits.
        if given is None or given.shape != theirs.shape or not torch.allclose(given, theirs, rtol=4e-3, atol=1e-5):
            differ.append(name)
    if differ:
        raise ValueError(
            f"The teacher {teacher.source} is not the tower of the host {tower.source}: its {differ[0]} is another. Leave "
            "--teacher out, or name that tower."
        )
