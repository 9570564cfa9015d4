"""What is measured is what is there: counts are exact, words are those of `generate`, and both sides take turns."""

import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import KINDS, opened, photo
from transformers import CLIPModel

import sfvlm.speed.shapes as shapes
from sfvlm.cli import run
from sfvlm.commands.options.speed import SpeedCommand
from sfvlm.commands.speed import speed_command
from sfvlm.hosts.host import Host
from sfvlm.hosts.template import user_message
from sfvlm.speed.hosts import Subject, host_facts, host_subject, measure_hosts, reply
from sfvlm.speed.measure import cost_rows, cost_table, in_turns


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets the number of threads of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def subject_of(folder: Path, *photos: Any, name: str = "host") -> Subject:
    model, processor = opened(folder)
    return host_subject(Host(model.requires_grad_(False), processor), name, photos or (photo(0), photo(1), photo(2)))


def layer_macs(tokens: int, width: int, inner: int, mlp_matrices: int) -> int:
    """A transformer block: four projections, its MLP, and both products of attention."""
    return tokens * (4 * width**2 + mlp_matrices * width * inner) + 2 * tokens**2 * width


def tower_macs(patches: int, side: int = 14, width: int = 32, inner: int = 48, depth: int = 2) -> int:
    """A CLIP tower with its class token."""
    return patches * 3 * side**2 * width + depth * layer_macs(patches + 1, width, inner, 2)


def prefill_macs(model: Any, tokens: int) -> int:
    """A LLaMA over a prompt, and the last word's logits."""
    config = model.config.text_config
    return (
        config.num_hidden_layers * layer_macs(tokens, config.hidden_size, config.intermediate_size, 3)
        + config.hidden_size * config.vocab_size
    )


def cache_bytes(model: Any, batch_size: int, tokens: int) -> int:
    config = model.config.text_config
    return 2 * config.num_hidden_layers * batch_size * tokens * config.hidden_size * model.dtype.itemsize


def test_sides_take_turns_and_warm_up_first() -> None:
    seen: list[tuple[str, int]] = []
    actions = [lambda turn, name=name: seen.append((name, turn)) or (name, turn) for name in "AB"]
    results = in_turns(actions, repeats=2, warmups=1)
    assert seen == [("A", 0), ("B", 0), ("A", 1), ("B", 1), ("A", 2), ("B", 2)]
    assert results == [[("A", 1), ("A", 2)], [("B", 1), ("B", 2)]]


def test_rows_have_medians_extremes_and_ratios_against_the_first() -> None:
    things = [("dense", "a"), ("sparse", "b")]
    facts = [{"tower_macs": 30.0, "photo_throughput": 1.0}, {"tower_macs": 10.0, "photo_throughput": 4.0}]
    runs = [
        [{"encode_seconds": 9.0}, {"encode_seconds": 4.0}, {"encode_seconds": 6.0}],
        [{"encode_seconds": seconds, "extra_bytes": 1} for seconds in (3.0, 4.0, 5.0)],
    ]
    dense, sparse = cost_rows(things, 4, facts, runs)
    assert (sparse["model"], sparse["source"], sparse["batch_size"]) == ("sparse", "b", 4)
    assert dense["measures"]["encode_seconds"] == {
        "median": 6.0, "min": 4.0, "max": 9.0, "values": [9.0, 4.0, 6.0], "times_less": 1.0
    }  # fmt: skip
    # Of 3, 1 and 6/5 a turn; the ratio of medians would be 6/4.
    assert sparse["measures"]["encode_seconds"]["times_less"] == pytest.approx(6 / 5)
    assert sparse["measures"]["tower_macs"]["times_less"] == 3.0
    assert sparse["measures"]["extra_bytes"]["times_less"] is None
    assert sparse["measures"]["photo_throughput"]["times_less"] is None  # more of it is better
    lines = cost_table([dense, sparse]).splitlines()
    assert lines[0].split() == ["batch", "4", "dense", "sparse"]
    assert "6000 ms (4000 ... 9000)" in lines[3] and "4000 ms (3000 ... 5000)  1.2 x" in lines[3]
    by_model = cost_table([dense, sparse], line_a_row=True).splitlines()
    assert [line.split()[0] for line in by_model] == ["batch", "dense", "sparse"]
    assert "4000 ms (3000 ... 5000)  1.2 x" in by_model[2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_say_what_generate_says(hosts: dict[str, Path], kind: str) -> None:
    photos = (photo(0), photo(1, (200, 60)))  # of other tiles, so that tiling hosts pad
    subject = subject_of(hosts[kind], *photos)
    inputs = subject.inputs(2, 0)
    assert bool(inputs["attention_mask"].all()) == (kind == "llava")
    _, words = reply(subject, 2, 0, 6)
    subject.model.generation_config.eos_token_id = None
    said = subject.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert words.tolist() == said[:, inputs["input_ids"].shape[1] :].tolist()
    assert len(set(words.flatten().tolist())) > 1


def test_counts_of_a_dense_llava_are_exact(hosts: dict[str, Path]) -> None:
    subject = subject_of(hosts["llava"])
    model, prompt = subject.model, subject.inputs(1, 0)["input_ids"].shape[1]
    measures, words = reply(subject, 3, 0, 4)
    assert words.shape == (3, 4)
    assert (measures["image_tokens"], measures["prompt_tokens"]) == (16, prompt)
    assert measures["kv_cache_bytes"] == cache_bytes(model, 3, prompt)
    facts = host_facts(subject)
    assert facts["tower_macs"] == tower_macs(16)
    assert facts["encode_macs"] == tower_macs(16) + 16 * 2 * 32**2  # the projector's two layers
    assert facts["prefill_macs"] == prefill_macs(model, prompt)
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    assert facts["all_parameters"] == sum(sizes.values())
    assert facts["tower_parameters"] == sum(size for name, size in sizes.items() if "vision_tower" in name)
    assert facts["language_model_parameters"] == sum(
        size for name, size in sizes.items() if "language_model" in name or name.startswith("lm_head")
    )


def test_counts_of_tiles_are_exact(hosts: dict[str, Path]) -> None:
    shown = photo(1, (200, 60))
    subject = subject_of(hosts["llava_next"], shown)
    model, processor = opened(hosts["llava_next"])
    tiles = subject.inputs(1, 0)["pixel_values"].shape[1]
    assert tiles > 1
    assert host_facts(subject)["tower_macs"] == tiles * tower_macs(16)
    measures, _ = reply(subject, 1, 0, 2)
    assert measures["image_tokens"] == Host(model, processor).image_tokens(shown)
    assert measures["kv_cache_bytes"] == cache_bytes(model, 1, int(measures["prompt_tokens"]))


def test_a_swapped_host_beside_its_dense_one(hosts: dict[str, Path], swapped_folder: Path) -> None:
    dense, sparse = subject_of(hosts["llava"], name="dense"), subject_of(swapped_folder, name="sparse")
    facts = [host_facts(dense), host_facts(sparse)]
    rows = measure_hosts([dense, sparse], 2, facts, repeats=3, new_tokens=3)
    tokens = [row["measures"]["image_tokens"]["median"] for row in rows]
    assert tokens == [16, 49]
    assert rows[1]["measures"]["image_tokens"]["times_less"] == pytest.approx(16 / 49)
    prompts = [row["measures"]["prompt_tokens"]["median"] for row in rows]
    assert prompts[1] - prompts[0] == 49 - 16
    assert facts[1]["prefill_macs"] == prefill_macs(sparse.model, prompts[1])
    assert facts[1]["encode_macs"] - facts[1]["tower_macs"] == 49 * 2 * 32**2
    for row in rows:
        measures = row["measures"]
        assert row["batch_size"] == 2
        assert all(value > 0 for summary in measures.values() for value in summary["values"])
        seconds = {name: each["values"] for name, each in measures.items() if name.endswith("seconds")}
        assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(
            ("prepare_seconds", "encode_seconds", "prefill_seconds", "first_token_seconds", "token_seconds"), 3
        )
        parts = zip(*(seconds[f"{part}_seconds"] for part in ("prepare", "encode", "prefill")), strict=True)
        assert seconds["first_token_seconds"] == pytest.approx([sum(each) for each in parts])


def test_energy_is_of_one_reply(hosts: dict[str, Path]) -> None:
    subject, counter = subject_of(hosts["llava"]), iter([1.0, 7.0, 10.0, 26.0])
    (row,) = measure_hosts([subject], 2, [{}], repeats=2, warmups=0, new_tokens=2, meter=lambda: next(counter))
    assert row["measures"]["reply_joules"]["values"] == [3.0, 8.0]


def test_every_turn_has_other_photos_and_all_hosts_the_same(hosts: dict[str, Path]) -> None:
    photos = [photo(index) for index in range(3)]
    subject = subject_of(hosts["llava"], *photos)
    model, processor = opened(hosts["llava"])
    conversation = [user_message("Describe the photo in detail.", 1)]
    text = processor.apply_chat_template([conversation], tokenize=False, add_generation_prompt=True)
    for turn, order in enumerate([(0, 1), (2, 0), (1, 2), (0, 1)]):
        expected = processor(text=text * 2, images=[[photos[index]] for index in order], return_tensors="pt")
        assert torch.equal(subject.inputs(2, turn)["pixel_values"], expected["pixel_values"])


def test_a_processor_of_another_host_is_refused(hosts: dict[str, Path], swapped_folder: Path) -> None:
    model, _ = opened(hosts["llava"])
    _, processor = opened(swapped_folder)
    with pytest.raises(ValueError, match=r"places for 49 image tokens, and its tower gives 16"):
        host_facts(host_subject(Host(model, processor), "mixed", [photo()]))


def test_other_models_are_refused(clip_model: CLIPModel) -> None:
    with pytest.raises(ValueError, match=r"of type 'clip'; those measured are llava"):
        host_facts(Subject("clip", "clip", clip_model, lambda count, turn: {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shape_is_three_hosts_of_one_language_model(dtype: torch.dtype) -> None:
    subjects = shapes.open_shape("tiny", dtype=dtype, device="cpu", batch_size=2)
    models = [subject.model for subject in subjects]
    assert [type(model.model.vision_tower).__name__ for model in models] == [
        "CLIPVisionModel", "SparseFormerModel", "ReducedTower"
    ]  # fmt: skip
    assert all(model.model.language_model is models[0].model.language_model for model in models)
    assert all(model.lm_head is models[0].lm_head for model in models)
    parameters = {parameter: name for model in models for name, parameter in model.named_parameters()}
    other = {name for parameter, name in parameters.items() if parameter.dtype != dtype}
    assert other <= {"model.vision_tower.focusing.token_roi.weight"}  # boxes are float32 always
    measured = [reply(subject, 2, 0, 3)[0] for subject in subjects]
    assert [each["image_tokens"] for each in measured] == [36, 9, 16]
    assert [each["prompt_tokens"] for each in measured] == [36 + 40, 9 + 40, 16 + 40]
    assert [each["kv_cache_bytes"] for each in measured] == [
        cache_bytes(model, 2, int(each["prompt_tokens"])) for model, each in zip(models, measured, strict=True)
    ]
    assert "prepare_seconds" not in measured[0]
    needed = sum(parameter.numel() for parameter in parameters) * dtype.itemsize + measured[0]["kv_cache_bytes"]
    assert shapes.needed_memory(shapes.SHAPES["tiny"], dtype, 2) == needed


def test_the_inputs_of_a_shape_change_from_turn_to_turn() -> None:
    dense, sparse, _ = shapes.open_shape("tiny", dtype=torch.float32, device="cpu")
    first, again, other = dense.inputs(2, 0), dense.inputs(2, 0), dense.inputs(2, 1)
    for name in ("pixel_values", "input_ids"):
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert torch.equal(first["pixel_values"], sparse.inputs(2, 0)["pixel_values"])


def test_the_counts_of_a_shape_are_exact() -> None:
    dense, sparse, picked = shapes.open_shape("tiny", dtype=torch.float32, device="cpu")
    facts = [host_facts(subject) for subject in (dense, sparse, picked)]
    assert facts[0]["tower_macs"] == tower_macs(36, 14, 64, 96, 3)
    assert [each["prefill_macs"] for each in facts] == [prefill_macs(dense.model, 40 + n) for n in (36, 9, 16)]
    assert [each["encode_macs"] - facts[0]["tower_macs"] for each in facts[:1]] == [36 * 2 * 64**2]


def test_7b_has_the_size_of_vicuna_and_is_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = shapes.needed_memory(shapes.SHAPES["7b"], torch.bfloat16, 1)
    # LLaMA-7B has 6,738,415,616 parameters; LLaVA's vocabulary 64 words more, in and out.
    language_model = 6_738_415_616 + 2 * 64 * 4096
    towers = needed / 2 - language_model - 2 * 32 * 4096 * (576 + 40)
    assert 3 * 300e6 < towers < 3 * 330e6  # three of CLIP ViT-L's size, and the projector's 21 million
    monkeypatch.setattr(shapes, "needed_memory", lambda shape, dtype, batch_size: needed)
    monkeypatch.setattr(shapes, "free_memory", lambda device: 8_000_000_000)
    message = rf"'7b' in bfloat16 needs {needed / 1e9:.1f} GB on cpu .* 8\.0 GB are free"
    with pytest.raises(ValueError, match=message):
        shapes.open_shape("7b", dtype=torch.bfloat16, device="cpu")


def test_free_memory_is_no_more_than_there_is() -> None:
    free = shapes.free_memory(torch.device("cpu"))
    assert free is None or 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert shapes.free_memory(torch.device("meta")) is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says what is free")
def test_files_that_a_container_has_read_take_no_memory_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("10000000\n")
    (tmp_path / "memory.current").write_text("9000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 8000000\ninactive_file 7000000\n")
    assert shapes.free_memory(torch.device("cpu")) == 8_000_000


def test_the_command_measures_folders(
    hosts: dict[str, Path], swapped_folder: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    flags = ["--host", str(hosts["llava"]), str(swapped_folder), "--photos", str(photo_folder), "--out", str(out)]
    numbers = ["--batch-sizes", "1", "2", "--repeats", "2", "--new-tokens", "3", "--device", "cpu"]
    run(speed_command, SpeedCommand, [*flags, *numbers])
    printed = capsys.readouterr().out
    assert "batch 1" in printed and "batch 2" in printed and "how many times less than llava." in printed
    content = json.loads(out.read_text())
    assert [(row["model"], row["batch_size"]) for row in content["rows"]] == [
        ("llava", 1), ("llava-49", 1), ("llava", 2), ("llava-49", 2)
    ]  # fmt: skip
    assert content["rows"][0].keys() == {"model", "source", "batch_size", "measures"}
    assert content["finished"] is True
    assert content["machine"]["threads"] == 1
    assert content["machine"]["device"] == "cpu"
    assert content["versions"]["torch"] == importlib.metadata.version("torch")
    assert content["settings"]["new_tokens"] == 3 and content["settings"]["prompt"] == "Describe the photo in detail."
    assert content["date"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "no/such/folder/here"], "no/such/folder/here"),
        (["--shape", "8b"], "There is no shape '8b'; the shapes are 7b, tiny."),
        (["--shape", "tiny", "--host", "llava-tiny"], "--host and --shape are kinds of measurement of their own"),
        (["--photos", "scenes:4"], "give --host or --bootstrap too"),
        (["--bootstrap", "clip-b16"], "--bootstrap is clip-b16; it takes a student of a dense encoder"),
        (["--bootstrap", "clip-b16/reduce:average@49"], "it takes a student of a dense encoder, as clip-l14-336@49"),
        (["--bootstrap", "clip-b16@49", "--accelerate", "int8"], "can be accelerated by compile, not by int8"),
        (["--shape", "tiny", "--repeats", "0"], "repeats is 0"),
        (["--shape", "tiny", "--threads", "0"], "threads is 0"),
        (["--shape", "tiny", "--warmups", "-1"], "--warmups is -1"),
        (["--shape", "tiny", "--new-tokens", "1"], "--new-tokens is 1"),
        (["--shape", "tiny", "--batch-sizes", "1", "0"], "batch size is 0"),
        (["--shape", "tiny", "--out", "no-such-folder/speed.json"], "a folder that exists"),
        (["--shape", "tiny", "--device", "gpu"], "The device 'gpu' cannot be used"),
        (["--encoder", "clip-l15"], "There is no encoder 'clip-l15': give clip-b16, clip-l14-336, a preset"),
        (["--encoder", "clip-b16@many"], "asks for 'many' tokens; behind @ stands a number, as in clip-b16@49"),
        (["--encoder", "clip-b16@0"], "asks for '0' tokens"),
        (["--encoder", "clip-b16/chosen"], "has no budget of its own: say how many tokens, as in clip-b16/chosen@49"),
        (["--encoder", "clip-b16/reduce:avarage@49"], "There is no method 'avarage'; the methods are resolution"),
        (["--encoder", "sparseformer-clip-base/chosen@49"], "sparse already"),
        (["--encoder", "clip-b16", "clip-b16"], "An encoder is given twice"),
        (["--encoder", "no.onnx"], "There is no file no.onnx."),
        (["--encoder", "clip-b16", "--host", "llava-tiny"], "--host and --encoder are kinds of measurement"),
        (["--accelerate", "int9"], "There is no acceleration 'int9'"),
        (["--accelerate", "graph", "--device", "cpu"], "'graph' needs a CUDA device"),
        (["--shape", "tiny", "--accelerate", "int8"], "--accelerate is for encoders, not for --shape"),
        (["--plot", "a.png"], "--plot needs --scaling, or --results"),
        (["--results", "a.json"], "say where by --plot"),
        (["--scaling", "clip-b16@49", "--plot", "a.gif"], "ending in .png, .svg, .pdf"),
        (["--scaling", "a", "b", "c"], "--scaling takes a sparse encoder and a dense one, not 3"),
        (["--scaling", "clip-b16@49", "--budgets", "0"], "budget is 0"),
    ],
)
def test_bad_input_is_one_sentence(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(speed_command, SpeedCommand, flags)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error and error.count("\n") == 1


@pytest.mark.gpu
def test_cuda_counts_its_memory() -> None:
    subjects = shapes.open_shape("tiny", dtype=torch.bfloat16, device="cuda")
    measures, _ = reply(subjects[0], 2, 0, 3)
    model = subjects[0].model
    tensors = [*model.parameters(), *model.buffers()]
    assert measures["weights_bytes"] == sum(tensor.nbytes for tensor in tensors)
    for phase in ("encode", "prefill", "decode"):
        assert measures[f"{phase}_peak_bytes"] > measures["weights_bytes"]
    assert measures["decode_peak_bytes"] >= measures["weights_bytes"] + measures["kv_cache_bytes"]
