"""Language models of the `llava` package under transformers that call the cache by another name, on stand-ins for both."""

import inspect
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import randomize
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from sfvlm.hosts.llava.models import adapt, restore
from sfvlm.hosts.reader import cache_name


class Meta:
    """Of what all language models of the package are."""


class Said:
    """transformers as it may be: the cache by one name, whatever else is given is taken without a word."""

    def forward(self, ids: Any, cache: Any = None, **others: Any) -> tuple[Any, Any, dict[str, Any]]:
        return ids, cache, others

    def prepare_inputs_for_generation(self, ids: Any, cache: Any = None, **others: Any) -> dict[str, Any]:
        return {"ids": ids, "cache": cache} | others


class SaidBefore:
    """The same by the older name."""

    def forward(self, ids: Any, past_key_values: Any = None, **others: Any) -> tuple[Any, Any, dict[str, Any]]:
        return ids, past_key_values, others

    def prepare_inputs_for_generation(self, ids: Any, past_key_values: Any = None, **others: Any) -> dict[str, Any]:
        return {"ids": ids, "past_key_values": past_key_values} | others


def arch() -> types.ModuleType:
    """A `llava.model.llava_arch` of its own for each test."""
    module = types.ModuleType("llava_arch")
    module.LlavaMetaForCausalLM = type("LlavaMetaForCausalLM", (Meta,), {})  # type: ignore[attr-defined]
    return module


def package_class(base: type, module: Any) -> Any:
    """A language model as the package writes them, over one of transformers'."""

    class Written(base, module.LlavaMetaForCausalLM):  # type: ignore[misc]
        def forward(
            self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
            images: Any = None, **kwargs: Any,
        ) -> Any:  # fmt: skip
            if attention_mask is not None:
                kwargs |= dict(attention_mask=attention_mask, position_ids=position_ids)
            return super().forward(input_ids, past_key_values=past_key_values, **kwargs)

        def prepare_inputs_for_generation(
            self, input_ids: Any, past_key_values: Any = None, inputs_embeds: Any = None, **kwargs: Any
        ) -> Any:
            kwargs.pop("images", None)
            return super().prepare_inputs_for_generation(
                input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
            )

    return Written


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_by_either_name_arrives_where_transformers_looks_for_it(name: str) -> None:
    module = arch()
    kind = package_class(Said, module)
    assert kind().forward("ids", past_key_values="kept") == ("ids", None, {"past_key_values": "kept"})  # lost, unsaid
    adapt(module)
    adapt(module)
    assert kind().forward("ids", **{name: "kept"}) == ("ids", "kept", {})
    prepared = kind().prepare_inputs_for_generation("ids", **{name: "kept"}, use_cache=True)
    assert prepared == {"ids": "ids", "cache": "kept", "inputs_embeds": None, "use_cache": True}
    assert kind().forward("ids", use_cache=True) == ("ids", None, {"use_cache": True})


def test_the_new_name_wins_where_both_are_given() -> None:
    module = arch()
    kind = package_class(Said, module)
    adapt(module)
    assert kind().forward("ids", cache="new", past_key_values=None)[1] == "new"
    assert kind().forward("ids", cache=None, past_key_values="old")[1] == "old"


def test_an_adapted_class_says_by_which_name_it_takes_the_cache() -> None:
    module = arch()
    kind = package_class(Said, module)
    adapt(module)
    for method in ("forward", "prepare_inputs_for_generation"):
        assert cache_name(getattr(kind, method)) == "cache"
    names = ["self", "input_ids", "attention_mask", "position_ids", "cache", "images", "kwargs"]
    assert [*inspect.signature(kind.forward).parameters] == names


def test_what_agrees_is_left_alone() -> None:
    module = arch()
    kind, without = package_class(SaidBefore, module), type("Without", (module.LlavaMetaForCausalLM,), {})
    before = vars(kind)["forward"], vars(kind)["prepare_inputs_for_generation"], kind.__mro__
    adapt(module)
    assert before == (vars(kind)["forward"], vars(kind)["prepare_inputs_for_generation"], kind.__mro__)
    assert not hasattr(without, "forward")
    adapt(types.ModuleType("no_such_classes"))
    adapt(None)


def test_a_class_on_a_class_of_the_package_is_translated_too() -> None:
    module = arch()
    kind = package_class(Said, module)

    class Fork(kind):
        def forward(self, input_ids: Any = None, past_key_values: Any = None, **others: Any) -> Any:
            self.seen = past_key_values
            return super().forward(input_ids, past_key_values=past_key_values, **others)

    class Inheriting(kind):
        pass

    mro = Fork.__mro__
    adapt(module)
    for _ in range(2):
        fork = Fork()
        assert fork.forward("ids", cache="kept") == ("ids", "kept", {}) and fork.seen == "kept"
        assert Inheriting().forward("ids", cache="kept") == ("ids", "kept", {})
        adapt(module)
    restore(module)
    assert Fork.__mro__ == mro


def test_one_method_alone_is_translated_where_only_that_is_the_packages_own() -> None:
    module = arch()

    class Half(Said, module.LlavaMetaForCausalLM):
        def prepare_inputs_for_generation(self, ids: Any, past_key_values: Any = None, **others: Any) -> Any:
            return super().prepare_inputs_for_generation(ids, past_key_values=past_key_values, **others)

    adapt(module)
    assert Half().prepare_inputs_for_generation("ids", cache="kept") == {"ids": "ids", "cache": "kept"}
    assert Half().forward("ids", cache="kept") == ("ids", "kept", {})
    assert "forward" not in vars(Half)


def test_it_is_undone() -> None:
    module = arch()
    kind = package_class(Said, module)
    before = vars(kind)["forward"], vars(kind)["prepare_inputs_for_generation"], kind.__mro__
    model = kind()
    adapt(module)
    assert kind.__mro__ != before[2]
    restore(module)
    restore(module)
    assert before == (vars(kind)["forward"], vars(kind)["prepare_inputs_for_generation"], kind.__mro__)
    adapt(module)
    assert model.forward("ids", cache="kept")[1] == "kept"


@pytest.fixture(params=["llama", "mistral"])
def real(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any, Any]]:
    """The installed transformers' model, a package's over it with the same weights, and its module."""
    sizes = dict(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    base, config = {
        "llama": (LlamaForCausalLM, LlamaConfig(**sizes)),
        "mistral": (MistralForCausalLM, MistralConfig(**sizes, sliding_window=4)),
    }[request.param]
    module = arch()
    expected = randomize(base(config)).eval()
    model = package_class(base, module)(config).eval()
    model.load_state_dict(expected.state_dict())
    adapt(module)
    yield expected, model, module
    restore(module)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, dict(num_beams=3), dict(do_sample=True), dict(use_cache=False)])
def test_the_installed_transformers_generates_with_the_cache_as_for_its_own(
    real: tuple[Any, Any, Any], options: dict[str, Any]
) -> None:
    expected, model, _ = real
    lengths: list[int] = []
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda _, given, hidden: lengths.append(hidden.shape[1]))
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(0))
    asked = dict(attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8) | options
    torch.manual_seed(0)
    reference = expected.generate(ids, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        torch.manual_seed(0)
        tokens = model.generate(ids, images=None, **asked)
    assert torch.equal(tokens, reference)
    assert lengths == ([*range(9, 17)] if options.get("use_cache") is False else [9] + [1] * 7)


def test_a_late_class_is_translated_when_its_host_asks_for_a_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfvlm.hosts.llava.package import ARCH, _Builder

    module = arch()
    monkeypatch.setitem(sys.modules, ARCH, module)
    builder = _Builder(lambda cfg: nn.Identity())
    kind = package_class(Said, module)
    builder(types.SimpleNamespace(mm_vision_tower="openai/clip"))
    assert kind().forward("ids", cache="kept")[1] == "kept"
