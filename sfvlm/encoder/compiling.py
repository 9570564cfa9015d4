"""`torch.compile` and CUDA graphs: a model at the shapes it is called with, in as many forms as it needs."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FORMS = 64  # that a compiled module may take: one for each size, batch and budget it is called with
Call = Callable[[nn.Module], Any]  # calls a model on the pixels at hand


def compile_forms(model: nn.Module, **options: Any) -> Any:
    """`torch.compile` with room for many sizes, batches and budgets: torch's own limit is 8, for all models of a class together.

    Args:
        model: What is compiled, when it is called.
        options: Of `torch.compile`.
    """
    if {"recompile_limit", "isolate_recompiles"} <= inspect.signature(torch.compile).parameters.keys():
        options |= {"recompile_limit": FORMS, "isolate_recompiles": True}
    else:  # older releases have one limit for the whole process
        settings: Any = torch._dynamo.config
        settings.recompile_limit = max(settings.recompile_limit, FORMS)
    return torch.compile(model, **options)


def to_compiled(model: nn.Module, call: Call) -> Any:
    """The model compiled for the call at hand; ValueError if the compiler cannot take it."""
    return _compiled(model, call)


def to_graph(model: nn.Module, call: Call) -> Any:
    """The same as one CUDA graph, whose outputs are copied out of its memory; ValueError if none can be recorded."""
    counters = torch._dynamo.utils.counters
    skips = counters["inductor"]["cudagraph_skips"]
    # The first call of a graph warms up and the second one records: what is compared afterwards is a replay.
    graph = _compiled(model, call, calls=2, mode="reduce-overhead")
    if counters["inductor"]["cudagraph_skips"] > skips:  # compiled it is, with its kernels started one by one
        raise ValueError(
            f"torch can record no CUDA graph of the {type(model).__name__}, and TORCH_LOGS=cudagraphs says why: use 'compile'."
        )
    # A graph writes its outputs to the same memory at every call. A hook of the wrapper runs outside of what was compiled.
    graph.register_forward_hook(lambda module, inputs, output: _copied(output))
    return graph


def _compiled(model: nn.Module, call: Call, calls: int = 1, **options: Any) -> Any:
    """Compiles a model and calls it, since torch compiles no sooner."""
    compiled = compile_forms(model, fullgraph=True, dynamic=False, **options)
    try:
        for _ in range(calls):
            call(compiled)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each compiler raises its own kinds; the model as it is has just run
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"torch.compile cannot take the {type(model).__name__}: {reason}") from error
    return compiled


def _copied(output: Any) -> Any:
    """An output with tensors of its own."""
    if isinstance(output, Tensor):
        return output.clone()
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        found = {field.name: _copied(getattr(output, field.name)) for field in dataclasses.fields(output)}
        return dataclasses.replace(output, **found)
    if isinstance(output, dict):
        return {name: _copied(value) for name, value in output.items()}
    if isinstance(output, tuple | list):
        return type(output)(*map(_copied, output)) if hasattr(output, "_fields") else type(output)(map(_copied, output))
    return output
