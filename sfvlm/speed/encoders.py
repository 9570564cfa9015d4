"""What encoders alone cost: a dense one, sparse ones, and the cheap alternatives, by name.

| name | what |
|---|---|
| `clip-b16`, `clip-l14-336` | transformers' CLIP of that published size, random weights, fused attention |
| `sparseformer-clip-large`, ... | a preset, random weights; behind `@` another budget |
| FOLDER, or a name of the zoo | a SparseFormer, behind `@` another budget; or a dense model, as `open_teacher` takes it |
| `D@49`, `D/inherited@49`, `D/fresh@49` | a student of the dense model D for a host, of chosen or another focusing, untrained |
| `D/reduce:average@49`, ... | a cheap alternative on it, one of `sfvlm.alternatives.methods` |
| FILE.onnx | what `sfvlm.onnx.export` wrote, on the CPU |

What is made of one dense model shares its weights, so that many fit into memory at once. Where D is a published size, its
transformers model has a second copy.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..alternatives.costs import macs
from ..alternatives.methods import METHODS, method_named
from ..alternatives.towers import REDUCE, reduce
from ..encoder.blocks import ProportionalAttention
from ..encoder.configuration import PRESETS, SparseFormerConfig, preset
from ..encoder.folder import open_student
from ..encoder.sparseformer import SparseFormerModel
from ..teachers.open import DenseTransformer, Teacher, open_teacher
from ..teachers.student import student_config
from ..util.choices import Focusing
from ..util.files import read_json
from ..zoo.names import ZOO, resolve
from .shapes import CLIPS, dense_config

SUITE_BUDGETS = (16, 25, 36, 49, 64, 100)
READ_LAYER = -2  # LLaVA's: where merging is to have reached its number of tokens
NAME = re.compile(rf"(?P<base>.+?)(?:/(?P<way>{'|'.join(get_args(Focusing))}|{REDUCE}[^/@]*))?(?:@(?P<tokens>[^/@]*))?")


class EncoderName(NamedTuple):
    """`BASE/WAY@TOKENS` in its parts."""

    base: str
    way: str | None  # a focusing stage, or reduce:METHOD
    tokens: int | None


@dataclass(frozen=True)
class Encoder:
    """A vision model that is called on pixels alone.

    Attributes:
        name, source: What it is called in tables, and what its weights are from.
        model: (B, 3, S, S) of `dtype` on `device` -> anything.
        image_size: Side S of its photos in pixels.
        num_tokens: Image tokens that it gives.
        device, dtype: Of its photos.
        counted: The module whose parameters and multiply-adds are its own; None where they are unknown.
        how: The way of `sfvlm.encoder.accelerate` it is run in, if any.
    """

    name: str
    source: str
    model: Callable[[Tensor], Any]
    image_size: int
    num_tokens: int
    device: torch.device
    dtype: torch.dtype
    counted: nn.Module | None = None
    how: str | None = None

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of a photo, as `sfvlm.alternatives.costs.macs` counts them; 0 where unknown. Nothing is computed for it."""
        if self.counted is None:
            return 0
        return macs(_without_memory(self.counted), self.image_size)

    @property
    def parameters(self) -> int:
        return 0 if self.counted is None else sum(parameter.numel() for parameter in self.counted.parameters())

    def pixels(self, batch_size: int, turn: int) -> Tensor:
        """Random photos, others every turn: (B, 3, S, S)."""
        generator = torch.Generator().manual_seed(turn)
        shape = (batch_size, 3, self.image_size, self.image_size)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)


def encoder_name(name: str) -> EncoderName:
    """Takes a name apart and checks it, as far as nothing has to be opened.

    Raises:
        ValueError: It is none.
    """
    if name.endswith(".onnx") and not Path(name).is_file():
        raise ValueError(f"There is no file {name}.")
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ValueError(f"{name!r} is no name of an encoder.")
    base, way, number = parts["base"], parts["way"], parts["tokens"]
    if Path(name).exists():
        base, way, number = name, None, None
    elif way is not None and Path(f"{base}/{way}").exists():  # a folder that is called so
        base, way = f"{base}/{way}", None
    if number is not None and (not number.isdecimal() or int(number) < 1):
        raise ValueError(f"{name!r} asks for {number!r} tokens; behind @ stands a number, as in {base}@49.")
    tokens = None if number is None else int(number)
    if way is not None and way.startswith(REDUCE):
        method_named(way.removeprefix(REDUCE))
    if way is not None and tokens is None:
        raise ValueError(f"{name} has no budget of its own: say how many tokens, as in {name}@49.")
    if way is not None and _is_sparse(base):
        raise ValueError(f"{base} is sparse already, so that there is no {name}: give {base}@{tokens}.")
    if base.endswith(".onnx") and tokens is not None:
        raise ValueError(f"{base} has a fixed number of tokens: leave @{tokens} out.")
    if base not in (*CLIPS, *PRESETS) and not Path(base).exists():
        _check_source(base)
    return EncoderName(base, way, tokens)


def _check_source(base: str) -> None:
    """Raises ValueError for what is no published size, no preset, no folder, no name of the zoo and no hub id."""
    if base not in ZOO and not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w-]+:.+", base):
        raise ValueError(
            f"There is no encoder {base!r}: give {', '.join(CLIPS)}, a preset ({', '.join(PRESETS)}), a folder, a name of "
            "`sfvlm zoo`, or an .onnx file."
        )


def suite(base: str, budgets: Sequence[int] = SUITE_BUDGETS) -> list[str]:
    """Names of a dense encoder, of its students at several budgets, and of every cheap alternative at one of them.

    That one is 49, or without it the largest.
    """
    beside = 49 if 49 in budgets else max(budgets)
    students = [f"{base}@{count}" for count in budgets]
    return [base, *students, f"{base}/inherited@{beside}", *(f"{base}/{REDUCE}{method}@{beside}" for method in METHODS)]


def dense_base(name: str) -> str | None:
    """The dense encoder that a student or alternative is made of; None for what stands alone.

    Raises:
        ValueError: It is no name of an encoder.
    """
    base, way, tokens = encoder_name(name)
    return None if _is_sparse(base) or (way is None and tokens is None) else base


class Encoders:
    """Opens encoders by name; what several of them stand on is opened once.

    Args:
        device: Where they are to be.
        dtype: Of their weights; boxes are float32 always.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._sparse: dict[str, SparseFormerModel] = {}
        self._dense: dict[str, DenseTransformer] = {}

    def open_all(self, names: Sequence[str]) -> list[Encoder]:
        """The encoders of these names; folders go by their last part, unless two would then be called the same.

        Raises:
            ValueError: As `open`; or two names are the same.
        """
        if len(set(names)) < len(names):
            raise ValueError(f"An encoder is given twice: {', '.join(names)}.")
        found = [self.open(name) for name in names]
        if len({encoder.name for encoder in found}) < len(found):
            found = [replace(encoder, name=name) for encoder, name in zip(found, names, strict=True)]
        return found

    def open(self, name: str) -> Encoder:
        """The encoder of that name.

        Raises:
            ValueError: There is none, or its number of tokens is one that it cannot give.
        """
        base, way, tokens = encoder_name(name)
        if base.endswith(".onnx"):
            return self._onnx(base)
        if _is_sparse(base):
            model = at_budget(self._sparse_model(base), tokens)
            return self._encoder(name, base, model, model.config.image_size, model.config.budget)
        if tokens is None:
            model, config = self._plain(base)
            return self._encoder(name, base, model, config.image_size, config.teacher_grid**2)
        dense = self._dense_model(base)
        if way is not None and way.startswith(REDUCE):
            model = reduce(dense, way.removeprefix(REDUCE), tokens, READ_LAYER)
        else:
            model = self._student(dense, way or "chosen", tokens)
        return self._encoder(name, base, model, dense.config.image_size, tokens)

    def _encoder(self, name: str, base: str, model: nn.Module, image_size: int, num_tokens: int) -> Encoder:
        model = model.eval().requires_grad_(False)
        shown = name.replace(base, Path(base).name, 1) if Path(base).exists() else name  # a folder by its last part
        return Encoder(shown, base, model, image_size, num_tokens, self.device, self.dtype, counted=model)

    def _onnx(self, path: str) -> Encoder:
        from ..onnx.session import OnnxEncoder

        if self.device.type != "cpu" or self.dtype != torch.float32:
            raise ValueError(f"{path} runs on the CPU in float32 alone: give --device cpu, and no other --dtype.")
        model = OnnxEncoder(path, threads=torch.get_num_threads())
        return Encoder(Path(path).name, path, model, model.image_size, model.num_tokens, self.device, self.dtype)

    def _sparse_model(self, base: str) -> SparseFormerModel:
        if base not in self._sparse:
            if base in PRESETS:
                with _random(self.device):
                    model = SparseFormerModel(preset(base))
            else:
                model = open_student(resolve(base))
            self._sparse[base] = model.to(device=self.device, dtype=self.dtype)  # type: ignore[arg-type]
        return self._sparse[base]

    def _dense_model(self, base: str) -> DenseTransformer:
        """What students and alternatives are made of."""
        if base not in self._dense:
            self._dense[base] = open_dense(base, self.device).model.to(self.device, self.dtype)
        return self._dense[base]

    def _plain(self, base: str) -> tuple[nn.Module, SparseFormerConfig]:
        """The dense encoder itself: transformers' own where it is random, so that nothing of ours is compared with ours."""
        if base not in CLIPS:
            model = self._dense_model(base)
            return model, model.config
        config = CLIPVisionConfig(**CLIPS[base])
        config._attn_implementation = "sdpa"
        with _random(self.device):
            model = CLIPVisionModelWithProjection(config)
        return model.to(device=self.device, dtype=self.dtype), dense_config(CLIPS[base])  # type: ignore[arg-type]

    def _student(self, dense: DenseTransformer, focusing: Any, tokens: int) -> SparseFormerModel:
        """An untrained student whose blocks and head are the dense model's."""
        config = student_config(dense.config, focusing=focusing, num_tokens=tokens, for_host=True)
        config.check_budget(tokens)
        depth, config.num_hidden_layers = config.num_hidden_layers, 0
        with _random(self.device):
            student = SparseFormerModel(config).to(device=self.device, dtype=self.dtype)  # type: ignore[arg-type]
            config.num_hidden_layers = depth
            if student.proportional is not None:  # it has numbers of every block
                student.proportional = ProportionalAttention(config).to(device=self.device, dtype=self.dtype)
                student._init_weights(student.proportional)
        student.blocks, student.head = dense.blocks[-depth:], dense.head
        return student


def _without_memory(module: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes and nothing else: running it computes nothing."""
    tensors = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in tensors}
    memo |= {key: nn.Parameter(memo[key], False) for key in map(id, module.parameters())}
    return copy.deepcopy(module, memo)


def open_dense(base: str, device: torch.device | None = None) -> Teacher:
    """A dense encoder as a teacher: as `open_teacher` takes it, or a published size with random weights.

    Raises:
        ValueError: It cannot be opened.
    """
    if base not in CLIPS:
        return open_teacher(base)
    with _random(device or torch.device("cpu")):
        model = DenseTransformer(dense_config(CLIPS[base]))
    return Teacher(model.eval().requires_grad_(False), base, "random")


@contextmanager
def _random(device: torch.device) -> Iterator[None]:
    """Inside, modules are made on the device, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with device:
            yield


def _is_sparse(base: str) -> bool:
    """Whether a preset, a folder or a name of the zoo is a SparseFormer."""
    if base in PRESETS:
        return True
    if base in CLIPS or not (Path(base).exists() or base in ZOO):
        return False
    config = Path(resolve(base)) / "config.json"
    return config.is_file() and read_json(config).get("model_type") == SparseFormerConfig.model_type


def at_budget(model: SparseFormerModel, tokens: int | None) -> SparseFormerModel:
    """The same model, its tensors shared, with so many tokens where a call asks for no number; None: as it is."""
    if tokens is None:
        return model
    twin = copy.copy(model)
    twin.config = copy.deepcopy(model.config)
    twin.config.default_budget = tokens
    return twin
