"""A segmentation model as transformers has them: a tower, its map, a linear head.

    pixels (B, 3, H, W) -> tower -> tokens, boxes -> map (B, D, h, w) -> batch norm, 1 x 1 -> logits (B, K, h, w)

One model for sparse towers, dense ones and the cheap ways to few tokens, so that all are compared by one protocol. As in
transformers, logits are of the map's size: whoever wants classes of pixels enlarges them once, to the size that is asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel, SegformerImageProcessor
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from ..alternatives.towers import ReducedTower
from ..dense.guide import Guide
from ..dense.probe import LinearHead, segmentation_loss
from ..encoder.blocks import as_asked, check_pixels
from ..encoder.folder import image_processor
from ..encoder.sparseformer import SparseFormerModel
from ..teachers.open import DenseTransformer
from .configuration import SegmenterConfig
from .towers import MapOf, Tower, guide_of, tower_of


class SparseFormerForSemanticSegmentation(PreTrainedModel):
    """Classes of pixels: `model(pixel_values, labels=None)` -> `SemanticSegmenterOutput`."""

    config_class = SegmenterConfig
    config: SegmenterConfig
    # Not "tower": transformers would take weights of our head for those of the tower's, which has one too.
    base_model_prefix = "segmenter"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _no_split_modules = ["SparseFormerModel", "ReducedTower", "DenseTransformer", "Block"]  # noqa: RUF012

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.tower = tower_of(config)
        self.guide = guide_of(config)
        self.head = LinearHead(config.hidden_size, config.num_labels or 2)
        self.post_init()

    @classmethod
    def around(
        cls,
        tower: Tower,
        class_names: Sequence[str],
        *,
        guide: Guide | None = None,
        num_tokens: int | None = None,
        reduce_labels: bool = False,
    ) -> "SparseFormerForSemanticSegmentation":
        """A model with a fresh head around a tower, which stays the same object: what trains the one trains the other.

        Args:
            tower: A SparseFormer, a teacher's dense transformer, or a reduced tower.
            class_names: K of them, in the order of their indices.
            guide: Makes the map of a SparseFormer: `sfvlm.dense.guide`; without one, boxes alone do.
            num_tokens: Budget of the SparseFormer's calls; None for its own.
            reduce_labels: See `SegmenterConfig`.

        Raises:
            ValueError: As `SegmenterConfig`, or there are not two classes.
        """
        if len(class_names) < 2:
            raise ValueError(f"There are {len(class_names)} classes, and pixels are told apart by at least 2.")
        kinds = {SparseFormerModel: "sparse", DenseTransformer: "dense", ReducedTower: "reduced"}
        config = SegmenterConfig(
            tower=next(name for kind, name in kinds.items() if isinstance(tower, kind)),
            tower_config=tower.config.to_dict(),  # type: ignore[union-attr]
            num_tokens=num_tokens,
            map="boxes" if guide is None else "guided",
            guide_config=None if guide is None else guide.config.to_dict(),
            reduce_labels=reduce_labels,
            id2label=dict(enumerate(class_names)),
            label2id={name: number for number, name in enumerate(class_names)},
        )
        with torch.device("meta"):  # its tensors are the tower's
            model = cls(config)
        model.tower, model.guide = tower, guide  # type: ignore[assignment]
        model.head = LinearHead(config.hidden_size, len(class_names))
        return model.eval()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_tokens: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> SemanticSegmenterOutput | tuple[Tensor, ...]:
        """Scores of each class, at the map's size.

        Args:
            pixel_values: (B, 3, H, W) normalised as the preprocessor does; any size and aspect ratio.
            labels: (B, H', W') class indices of any size; `semantic_loss_ignore_index` counts for nothing.
            num_tokens: The budget for this call, of a sparse tower.
            output_hidden_states: Also return the map (B, D, h, w), as the one hidden state.
            return_dict: False for a plain tuple.
            _: What a pipeline hands on without need.

        Raises:
            ValueError: The pixels are not (B, 3, H, W), or the labels not (B, H', W').
        """
        check_pixels(pixel_values)
        dense = self.features(pixel_values, num_tokens)
        logits = self.head(dense)
        loss = None
        if labels is not None:
            if labels.ndim != 3 or len(labels) != len(logits):
                raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be ({len(logits)}, height, width).")
            loss = segmentation_loss(logits, labels.to(logits.device).long(), self.config.semantic_loss_ignore_index)
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=(dense,) if asked else None)  # type: ignore[arg-type]
        return as_asked(self.config, return_dict, output)

    def features(self, pixel_values: Tensor, num_tokens: int | None = None) -> Tensor:
        """The map that the head reads: (B, 3, H, W) -> (B, D, h, w)."""
        return self.map_of(num_tokens)(pixel_values.to(self.dtype))

    def map_of(self, num_tokens: int | None = None) -> MapOf:
        """The tower and its map without the head, for one budget.

        Raises:
            ValueError: The tower is none that takes a budget, or gives none like it.
        """
        if num_tokens is not None:
            self.config.check_budget(num_tokens)
        return MapOf(self.tower, self.guide, num_tokens or self.config.num_tokens)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises every parameter explicitly: meta construction skips what layers do by themselves."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)  # type: ignore[arg-type]
            init.ones_(module.running_var)  # type: ignore[arg-type]
            init.zeros_(module.num_batches_tracked)  # type: ignore[arg-type]
        else:
            for parameter in module.parameters(recurse=False):
                init.trunc_normal_(parameter, std=std)


def processor_of(config: SegmenterConfig) -> SegformerImageProcessor:
    """The preprocessor that belongs into a model's folder: a photo is squashed to the square, and its mask with it.

    It is transformers' own for SegFormer, which takes `segmentation_maps` and `do_reduce_labels` and gives
    `post_process_semantic_segmentation`.
    """
    same = image_processor(config.sparse)
    side = config.image_size
    return SegformerImageProcessor(
        size={"height": side, "width": side},
        resample=same.resample,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        do_reduce_labels=config.reduce_labels,
    )


def label_names(config: SegmenterConfig) -> tuple[str, ...]:
    """The classes in the order of their indices."""
    labels: Mapping[int, str] = config.id2label  # type: ignore[assignment]
    return tuple(labels[number] for number in range(len(labels)))


AutoModelForSemanticSegmentation.register(SegmenterConfig, SparseFormerForSemanticSegmentation, exist_ok=True)
# What `register` leaves out, and pipeline("image-segmentation") goes by when it says which models it knows.
_KNOWN: dict[str, Any] = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES  # pyright: ignore[reportAssignmentType]
_KNOWN[SegmenterConfig.model_type] = SparseFormerForSemanticSegmentation.__name__
