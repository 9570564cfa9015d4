"""Tiny models and photos, built here: nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from tiny import randomize
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from sfvlm.photos.scenes import render_scene
from sfvlm.speed.shapes import CLIPS

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# Reasons to skip that are facts of a machine. On CI every other skip fails: what is promised is tried there.
OF_THE_MACHINE = ("takes UTF-8 alone", "only Linux says", "this torch has")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _without_skip((yield))


def _without_skip(report: Report) -> Report:
    """The report, failed where a test was skipped for what CI should have installed."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(fact in reason for fact in OF_THE_MACHINE):
            report.outcome, report.longrepr = "failed", f"Skipped on CI, where nothing may be: {reason}"
    return report


VISION = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
    projection_dim=24,
)
TEXT = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=16,
    projection_dim=24,
    eos_token_id=98,
    bos_token_id=97,
    pad_token_id=98,
)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def clip_model() -> CLIPModel:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=CLIPTextConfig(**TEXT).to_dict(), vision_config=CLIPVisionConfig(**VISION).to_dict()
    )
    config.projection_dim = 24
    return randomize(CLIPModel(config)).eval()  # type: ignore[return-value]


@pytest.fixture(scope="session")
def clip_folder(clip_model: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "clip"
    clip_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "scenes"
    folder.mkdir()
    for index in range(24):
        render_scene(0, index, 48).image.save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def one_form_kept() -> Iterator[None]:
    """By itself torch keeps one form of a compiled module, instead of 8: the second tells whether more are kept."""
    with torch._dynamo.config.patch(recompile_limit=1):
        yield


@pytest.fixture
def compiled_graphs(one_form_kept: None, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The graphs that torch.compile has made so far; they run as they are, without a compiler for this machine."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return graphs


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny hosts by kind, in folders; copy one before changing it."""
    from tiny_hosts import KINDS, tiny_host

    return {kind: tiny_host(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def llava(hosts: dict[str, Path]) -> Path:
    """The tiny LLaVA, which reads CLIP at layer -2; copy it before changing it."""
    return hosts["llava"]


@pytest.fixture(scope="module")
def swapped_folder(hosts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLaVA with a tower of 49 tokens."""
    from tiny_hosts import tiny_tower

    from sfvlm.hosts.folders import swap_folder

    out = tmp_path_factory.mktemp("swapped") / "llava-49"
    swap_folder(hosts["llava"], tiny_tower(), out)
    return out


@pytest.fixture
def small_published_clip(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a published CLIP that is much smaller here."""
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        hidden_act="quick_gelu", projection_dim=8,
    )  # fmt: skip
    monkeypatch.setitem(CLIPS, "clip-b16", sizes)
    return "clip-b16"
