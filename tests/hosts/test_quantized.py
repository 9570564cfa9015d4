"""Hosts on several devices, with adapters, and in few bits."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import PROMPT, logits, opened, photo, tiny_tower
from tiny_llava import tiny_llava

from sfvlm.hosts.folders import swap_folder
from sfvlm.hosts.quantized import KEPT_WHOLE, check_census, check_products, quantization
from sfvlm.hosts.swap import swap


def test_a_tower_in_a_spread_host_goes_where_the_dense_one_was(hosts: dict[str, Path], tmp_path: Path) -> None:
    plain, processor = opened(hosts["llava"])
    swap(plain, processor, tiny_tower())
    expected = logits(plain, processor)
    for place in ("cpu", "disk"):
        spread = {"model.vision_tower": place, "model.multi_modal_projector": "cpu"}
        spread |= {"model.language_model": "disk", "lm_head": "cpu"}
        model, processor = opened(hosts["llava"], device_map=spread, offload_folder=tmp_path / place)
        swap(model, processor, tiny_tower())
        torch.testing.assert_close(logits(model, processor), expected, atol=1e-5, rtol=1e-5)


def test_a_device_map_never_splits_the_tower(swapped_folder: Path) -> None:
    from accelerate import infer_auto_device_map

    model, _ = opened(swapped_folder)
    tower = sum(parameter.numel() * 4 for parameter in model.model.vision_tower.parameters())
    small = {device: int(tower * 1.6) for device in range(8)}
    placed = infer_auto_device_map(model, max_memory=small, no_split_module_classes=list(model._no_split_modules))
    assert len(set(placed.values())) > 1
    assert [name for name in placed if name.startswith("model.vision_tower")] == ["model.vision_tower"]


LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_adapters_meant_for_the_language_model_do_not_hit_the_tower(
    hosts: dict[str, Path], swapped_folder: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    def adapted_parts(model: Any) -> set[str]:
        return {part for name, _ in model.named_parameters() if "lora_" in name for part in KEPT_WHOLE if part in name}

    model, processor = opened(swapped_folder)
    assert adapted_parts(get_peft_model(model, LoraConfig(target_modules=LORA))) == set()
    model, _ = opened(swapped_folder)
    everything = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert "model.vision_tower" in adapted_parts(everything)  # hence the advice in the refusal below
    model, _ = opened(swapped_folder)
    without = LoraConfig(target_modules="all-linear", exclude_modules=r".*(vision_tower|multi_modal_projector).*")
    assert adapted_parts(get_peft_model(model, without)) == set()

    # An adapter of the dense host, on its language model alone, goes on working: wrapped while it is swapped, or loaded after.
    dense, processor = opened(hosts["llava"])
    only_llm = r".*language_model.*(q_proj|v_proj)"
    adapter = get_peft_model(dense, LoraConfig(target_modules=only_llm, init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    swap(adapter, processor, tiny_tower())
    reloaded = PeftModel.from_pretrained(opened(swapped_folder)[0], tmp_path / "adapter")
    expected = logits(adapter, processor)
    torch.testing.assert_close(logits(reloaded, processor), expected, atol=1e-5, rtol=1e-5)
    assert (expected - logits(opened(swapped_folder)[0], processor)).abs().max() > 1e-3


def test_an_adapter_in_the_hosts_tower_is_not_lost_whatever_its_kind(hosts: dict[str, Path]) -> None:
    from peft import IA3Config, LoraConfig, get_peft_model

    of_llm = r".*language_model.*q_proj"
    for adapter, said in (
        (LoraConfig(target_modules=["q_proj", "v_proj"]), "4 modules .*the first is encoder.layers.0.self_attn.v_proj"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "2 modules .*encoder.layers.0.self_attn.k_proj"),
        (LoraConfig(target_modules=of_llm, modules_to_save=["vision_tower"]), "the first is the tower itself"),
    ):
        dense, processor = opened(hosts["llava"])
        with pytest.raises(ValueError, match=said):
            swap(get_peft_model(dense, adapter), processor, tiny_tower())
    dense, processor = opened(hosts["llava"])
    swap(
        get_peft_model(dense, LoraConfig(target_modules=of_llm, modules_to_save=["multi_modal_projector"])),
        processor,
        tiny_tower(),
    )


def test_quantisation_without_its_package_or_with_odd_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="4 bits needs the bitsandbytes package"):
        quantization(4)
    with pytest.raises(ValueError, match="bits is 3"):
        quantization(3)  # type: ignore[arg-type]


@pytest.mark.reference
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_host_keeps_tower_projector_and_output_layer_whole(bits: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    host = tiny_llava(tmp_path, text_width=256)  # its kernels for 4 bits refuse narrow layers
    swap_folder(host, tiny_tower(), tmp_path / "out")
    options: dict[str, Any] = dict(quantization_config=quantization(bits), dtype=torch.bfloat16, device_map={"": "cpu"})
    model, processor = opened(tmp_path / "out", **options)
    found = check_census(model)
    assert found["model.language_model"].keys() == {f"Linear{'4bit' if bits == 4 else '8bitLt'}"}
    inputs = processor(text=[PROMPT], images=[photo()], return_tensors="pt")
    assert len(model.generate(**inputs, max_new_tokens=2)) == 1
    # Loaded quantised and swapped in memory; saved quantised and swapped as a folder: the same host.
    dense, processor = opened(host, **options)
    dense.save_pretrained(tmp_path / "quantised")
    processor.save_pretrained(tmp_path / "quantised")
    swap(dense, processor, tiny_tower())
    check_census(dense)
    assert torch.equal(logits(dense, processor), logits(model, processor))
    swap_folder(tmp_path / "quantised", tiny_tower(), tmp_path / "again")
    again, processor = opened(tmp_path / "again", device_map={"": "cpu"})
    check_census(again)
    torch.testing.assert_close(logits(again, processor), logits(model, processor))


@pytest.mark.reference
def test_the_census_finds_a_skip_list_that_matched_nothing(swapped_folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = quantization(8)
    config.llm_int8_skip_modules = ["vision_tower", "multi_modal_projector"]
    model, _ = opened(swapped_folder, quantization_config=config, device_map={"": "cpu"})
    with pytest.raises(
        ValueError, match=r"layers of model.vision_tower, 2 layers of model.multi_modal_projector, 1 layers of lm_head"
    ):
        check_census(model)


def test_layers_that_cannot_be_multiplied_by_are_named() -> None:
    class Linear4bit(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            assert self.out_features % 32 == 0, "N must be\ndivisible by block_n"
            return super().forward(input.float())

    check_products(torch.nn.Sequential(Linear4bit(8, 64), Linear4bit(64, 32)))
    with pytest.raises(ValueError, match=r"cannot multiply by 1, 40 x 64, on cpu \(N must be divisible"):
        check_products(torch.nn.Sequential(Linear4bit(8, 64), Linear4bit(64, 40)))
