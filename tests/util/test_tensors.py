"""Tensors: equal rows are computed once."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from sfvlm.util.tensors import equal_rows_once


class Doubling(nn.Module):
    """Doubles its rows and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[int] = []

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        self.counted.append(len(pixel_values))
        doubled: Tensor = 2 * pixel_values
        return BaseModelOutput(last_hidden_state=doubled, hidden_states=(pixel_values, doubled))  # type: ignore[arg-type]


def test_equal_rows_are_computed_once_and_given_for_each() -> None:
    module, rows = Doubling(), torch.tensor([[1.0], [2.0], [1.0], [1.0], [3.0]])
    with equal_rows_once(module, "pixel_values"):
        by_name, by_place = module(pixel_values=rows), module(rows)
    assert module.counted == [3, 3]
    for output in (by_name, by_place):
        assert torch.equal(output.last_hidden_state, 2 * rows)
        assert torch.equal(output.hidden_states[0], rows)
        assert torch.equal(output.hidden_states[1], 2 * rows)


def test_different_rows_go_through_as_they_are_and_nothing_stays() -> None:
    module, rows = Doubling(), torch.arange(3.0)[:, None]
    with equal_rows_once(module, "pixel_values"):
        assert torch.equal(module(rows).last_hidden_state, 2 * rows)
    module(torch.ones(2, 1))
    assert module.counted == [3, 2]
