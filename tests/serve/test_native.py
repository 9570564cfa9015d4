"""How our towers get into vLLM's own classes, with modules of the same names in their place."""

import sys
import warnings
from abc import ABC, abstractmethod
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sfvlm.alternatives.towers import reduce_host
from sfvlm.encoder.folder import open_student
from sfvlm.serve import native
from sfvlm.serve.native import Unsupported, install, served_tower
from sfvlm.serve.plugin import register
from sfvlm.zoo.names import resolve

NAMES = ("llava", "llava_next", "llava_onevision", "vision", "clip")


class Info(ABC):
    def __init__(self, hf_config: Any) -> None:
        self.hf_config, self.vision_config = hf_config, hf_config.vision_config

    @abstractmethod
    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int: ...

    @abstractmethod
    def get_image_size(self) -> int: ...

    @abstractmethod
    def get_patch_size(self) -> int: ...

    @abstractmethod
    def get_patch_grid_length(self) -> int: ...


class Clip:
    def forward(self, pixel_values: Any, select_layers: Any = None, feature_select_strategy: Any = None) -> None: ...


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """vLLM's modules, with as much in them as `native` looks at."""
    made: dict[str, Any] = {name: ModuleType(f"{native.MODELS}.{name}") for name in NAMES}

    def builds(hf_config: Any, quant_config: Any = None, *, prefix: str = "") -> str:
        return "stock"

    def counts(hf_config: Any) -> str:
        return "stock"

    made["vision"].VisionEncoderInfo, made["clip"].CLIPVisionModel = Info, Clip
    made["llava"].BaseLlavaProcessingInfo = object
    for name in NAMES[:3]:
        setattr(made[name], native.BUILDS, builds)
    for name in ("llava", "llava_next"):  # as in 0.32.0, llava_onevision does not know the other one
        setattr(made[name], native.COUNTS, counts)
    packages = ["vllm", "vllm.model_executor", "vllm.model_executor.models"]
    for name in packages:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in made.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def hosted(tower: Any, strategy: str = "default", layer: Any = -2) -> Any:
    return SimpleNamespace(
        vision_config=tower.config, vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )


@pytest.fixture(scope="module")
def sparse() -> Any:
    return open_student(resolve("sparseformer-tiny-49"))


def test_our_towers_are_built_and_counted_by_us_and_all_others_by_the_engine(
    engine: dict[str, Any], sparse: Any
) -> None:
    install()
    install()  # once
    other = SimpleNamespace(vision_config="a CLIP")
    for name in NAMES[:3]:
        build = getattr(engine[name], native.BUILDS)
        assert build(other, None, prefix="vision_tower") == "stock"
        assert isinstance(build(hosted(sparse), None, prefix="vision_tower"), type(sparse))
    count = getattr(engine["llava"], native.COUNTS)
    info = count(hosted(sparse))
    assert count(other) == "stock"
    assert info.get_num_image_tokens(image_width=1, image_height=1) == 49 + sparse.config.has_cls_token
    assert (info.get_image_size(), info.get_patch_grid_length()) == (224, 7) and info.get_patch_size() == 32


@pytest.mark.parametrize("which", ["sparse", "reduced"])
def test_a_served_tower_gives_the_tokens_that_the_host_reads(which: str, sparse: Any) -> None:
    tower = sparse if which == "sparse" else reduce_host(resolve("llava-tiny"), "diversity", 49)
    served = served_tower(hosted(tower))
    served.load_state_dict(tower.state_dict())
    served.eval()
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        wanted = tower(pixels, output_hidden_states=True).hidden_states[-2]
        found = served(pixels, select_layers=None, feature_select_strategy="default")
        whole = served(pixels, feature_select_strategy="full")
    torch.testing.assert_close(found, wanted[:, 1:])
    torch.testing.assert_close(whole, wanted)


def test_several_layers_are_joined_as_the_projector_reads_them(sparse: Any) -> None:
    served = served_tower(hosted(sparse, layer=[-3, -2]))
    assert served(torch.zeros(1, 3, 224, 224), feature_select_strategy="default").shape == (
        1,
        49,
        2 * sparse.config.hidden_size,
    )


def test_a_tower_that_would_end_the_engine_is_refused_before_a_photo_comes(
    sparse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(torch.nn.Linear):
        def forward(self, pixel_values: Any, feature_select_strategy: Any = None) -> Any:
            return torch.zeros(len(pixel_values), 48, 192)

    monkeypatch.setattr(native, "_class_of", lambda _: lambda _: Other(1, 1))
    with pytest.raises(
        ValueError, match=r"gives tokens of \(1, 48, 192\), and its host reads \(1, 49, 192\): make the swap anew"
    ):
        served_tower(hosted(sparse))


@pytest.mark.parametrize(
    "change", ["asks more of a tower", "asks more of its counts", "moved a name", "other arguments"]
)
def test_an_engine_that_is_otherwise_is_left_alone_with_a_warning(engine: dict[str, Any], change: str) -> None:
    def asks_more(self: Any, pixel_values: Any, grid: Any) -> None: ...

    if change == "asks more of a tower":
        engine["clip"].CLIPVisionModel = type("Clip", (), {"forward": asks_more})
    elif change == "asks more of its counts":
        engine["vision"].VisionEncoderInfo = type("More", (Info,), {"get_more": abstractmethod(lambda self: 0)})
    elif change == "moved a name":
        delattr(engine["llava_onevision"], native.BUILDS)
    else:
        setattr(engine["llava"], native.BUILDS, lambda config: "stock")
    before = {name: vars(module).copy() for name, module in engine.items()}
    with pytest.raises(Unsupported):
        install()
    with pytest.warns(UserWarning, match="serve such folders with --model-impl transformers"):
        register()
    assert {name: vars(module) for name, module in engine.items()} == before


def test_registering_never_raises_where_there_is_no_engine() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        register()
    assert len(said) == 1 and "No module named 'vllm'" in str(said[0].message)
