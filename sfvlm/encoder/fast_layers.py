"""Linear layers with their weights in another form: laid out in advance, or in 8 bits. `sfvlm.encoder.replacing` puts them into models.

oneDNN and oneMKL both lay weights out for products of so many rows, and which of them then multiplies faster depends on the
processor and the layer. So each layer tries both, and takes the one that was faster.

Not torchao for the 8 bits: on a CPU its layers are no faster than float32 until torch.compile has made code of them, and slower than
these then.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRIED = 5  # runs with each library, of which the fastest counts


class FastLinear(nn.Linear):
    """A linear layer with weights in another form beside its own, which stay what is saved.

    `gain` and `bias_gain` multiply the product and the bias: what scales its input or output costs nothing here.
    """

    def __init__(self, linear: nn.Linear, gain: float = 1.0, bias_gain: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.gain, self.bias_gain = gain, bias_gain

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weights and bias with the gains."""
        return self.weight * self.gain, None if self.bias is None else self.bias * self.bias_gain

    def forms(self) -> Iterable[Any]:
        """The weights in their other form."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> "FastLinear":
        """A copy on the same other forms: nothing changes them, and torch cannot copy them, or does so into a third form."""
        memo.update({id(form): form for form in self.forms()})
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class Packing(NamedTuple):
    """A library's way to lay weights out.

    Attributes:
        pack: Weights (out, in) and the rows of the products to come -> the same numbers, in a form of its own.
        multiply: Input (..., in), that form, weights, bias and rows -> (..., out).
    """

    pack: Callable[[Tensor, int], Tensor]
    multiply: Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]


def packings() -> list[Packing]:
    """Those of this torch build."""
    found, mkl, mkldnn = [], torch.ops.mkl, torch.ops.mkldnn
    if torch.backends.mkldnn.is_available() and hasattr(mkldnn, "_linear_pointwise"):
        found.append(Packing(mkldnn._reorder_linear_weight, _multiply_by_onednn))
    if torch.backends.mkl.is_available() and hasattr(mkl, "_mkl_linear"):
        found.append(Packing(mkl._mkl_reorder_linear_weight, mkl._mkl_linear))
    return found


def _multiply_by_onednn(input: Tensor, pack: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, pack, bias, "none", [], "")


class PackedLinear(FastLinear):
    """Float32 weights packed once for every number of rows it meets first while `packing`."""

    def __init__(self, linear: nn.Linear, gain: float = 1.0, bias_gain: float = 1.0) -> None:
        super().__init__(linear, gain, bias_gain)
        self.packs: dict[int, tuple[Packing, Tensor, Tensor | None]] = {}  # by rows; with the bias
        self.packing = True

    def forms(self) -> Iterable[Tensor]:
        return [pack for _, pack, _ in self.packs.values()]

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        if self.packing and rows not in self.packs:
            self.packs[rows] = self._fastest(input, rows)
        if rows in self.packs:
            packing, pack, bias = self.packs[rows]
            return packing.multiply(input, pack, self.weight, bias, rows)
        if self.gain == self.bias_gain == 1:
            return F.linear(input, self.weight, self.bias)
        product = F.linear(input, self.weight).mul_(self.gain)
        return product if self.bias is None else product.add_(self.bias * self.bias_gain)

    def _fastest(self, input: Tensor, rows: int) -> tuple[Packing, Tensor, Tensor | None]:
        weight, bias = self.scaled()

        def seconds(packing: Packing, pack: Tensor) -> float:
            start = time.perf_counter()
            packing.multiply(input, pack, self.weight, bias, rows)
            return time.perf_counter() - start

        made = [(packing, packing.pack(weight, rows)) for packing in packings()]
        packing, pack = min(made, key=lambda each: min(seconds(*each) for _ in range(TRIED)))
        return packing, pack, bias


class Int8Linear(FastLinear):
    """Weights as 8-bit numbers with a scale an output; its input becomes 8 bits with one scale a call.

    Args:
        linear: In float32.
        engine: Of torch's quantised layers.
        large: Features of the input that are multiplied in float32, by number. They become 0 in the input itself: only for a layer
            whose input nobody else reads, such as an MLP's second.
        gain, bias_gain: As in `FastLinear`.
    """

    def __init__(
        self, linear: nn.Linear, engine: str, large: Tensor | None = None, gain: float = 1.0, bias_gain: float = 1.0
    ) -> None:
        super().__init__(linear, gain, bias_gain)
        weight, bias = self.scaled()
        self.large = large
        if large is not None:
            self.large_weight = weight[:, large].T.contiguous()
            weight = weight.index_fill(1, large, 0)
        self.packed = _packed_int8(weight, bias, engine)
        self.reduce_range = not _has_vnni()  # without it 8 bits by 8 bits can overflow the 16 they are added in

    def forms(self) -> Iterable[Any]:
        return [self.packed]

    def forward(self, input: Tensor) -> Tensor:
        if self.large is None:
            return torch.ops.quantized.linear_dynamic(input, self.packed, self.reduce_range)
        large = input.index_select(-1, self.large).flatten(0, -2)
        # In place: such a layer's input was made by the activation in front of it, for it alone.
        small = input.index_fill_(-1, self.large, 0)
        output = torch.ops.quantized.linear_dynamic(small, self.packed, self.reduce_range)
        output.view(-1, self.out_features).addmm_(large, self.large_weight)
        return output


def _packed_int8(weight: Tensor, bias: Tensor | None, engine: str) -> Any:
    scales = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        # torch wants quantised tensors to go some day; there is no other such layer yet.
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_channel(
            weight.float(), scales.double(), torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8
        )
        torch.backends.quantized.engine = engine
        try:
            return torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.float())
        finally:
            torch.backends.quantized.engine = before


def int8_engines() -> list[str]:
    """Of this torch build, the fastest first."""
    return [name for name in ("onednn", "x86", "fbgemm") if name in torch.backends.quantized.supported_engines]


def _has_vnni() -> bool:
    return torch.cpu._is_vnni_supported()
