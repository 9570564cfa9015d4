"""The flags of `sfvlm fidelity`, `sfvlm retained` and `sfvlm serve`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class FidelityCommand:
    """Measure how near towers keep a LLaVA to what it says with its own dense tower: any photos, no labels."""

    host: str = "llava-tiny"
    """LLaVA with its dense tower: folder, hub id or name of the zoo."""
    tower: list[str] = field(default_factory=lambda: ["sparseformer-tiny-49"])
    """SparseFormer folders or names of the zoo, or reduce:METHOD for the host's own tower with few tokens; behind @ so many
    image tokens, as in runs/sf49@36 reduce:average@49."""
    photos: list[str] = field(default_factory=lambda: ["scenes:100:1000000"])
    """Folders, tar shards, Hugging Face datasets on disk, or scenes:COUNT:SEED; such that no tower was trained on."""
    only: Path | None = None
    """File with the names of the photos to ask about, one a line; default all of them."""
    limit: int = 200
    """At most so many photos, spread evenly over all; 0 for all."""
    turns: int = 4
    """Prompts a photo."""
    prompts: Path | None = None
    """File of these prompts, one a line; default general ones, and those a photo's source brings along."""
    seed: int = 0
    """Of the prompts."""
    batch_size: int = 16
    """Photos at once."""
    dtype: str | None = None
    """Default the checkpoint's own, but float32 on a CPU."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """A .json file to write; the folder of that name keeps the host's answers, which the next call takes from there."""


@dataclass(frozen=True)
class RetainedCommand:
    """Join results of eval/vqa.py: the share of the first model's score that each other one retains, on average too."""

    results: Annotated[list[Path], tyro.conf.Positional]
    """Files that eval/vqa.py --out wrote, one a benchmark, all with the same first model; models go by their names."""
    of: str | None = None
    """The model whose lead over each other one is asked for, as the results name it; default the second."""
    out: Path | None = None
    """A .json file to write."""


@dataclass(frozen=True)
class ServeCommand:
    """Serve a host by vLLM behind OpenAI's interface: the engine is told what the folder needs, and all other flags are its own."""

    model: str
    """A swapped or a dense host: folder or name of the zoo; what is neither is handed to the engine as it is."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of the machine's."""
    port: int = 8000
    """Port to listen at."""
    python: str = sys.executable
    """The interpreter of an environment that has vLLM, and sfvlm beside it; default this one."""
    engine_flags: tyro.conf.Suppress[tuple[str, ...]] = ()
    """What else is given: handed to the engine."""
