"""Encoders by name share weights and count exactly; what follows from a latency follows; plots hold what the files hold."""

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

import sfvlm.onnx.session
import sfvlm.speed.energy as energy
import sfvlm.speed.floor as floor_module
import sfvlm.speed.rounds as rounds_module
from sfvlm.alternatives.costs import macs
from sfvlm.alternatives.methods import METHODS
from sfvlm.cli import run
from sfvlm.commands.options.speed import SpeedCommand
from sfvlm.commands.speed import speed_command
from sfvlm.speed.encoders import Encoder, EncoderName, Encoders, at_budget, dense_base, encoder_name, suite
from sfvlm.speed.floor import Ceiling, floor_seconds, measure_ceiling
from sfvlm.speed.plots import OTHERS, plot_quality, plot_scaling
from sfvlm.speed.quality import Identity, match, read_files, result_identity
from sfvlm.speed.rounds import Ceilings, derived, encoder_facts, measure_encoders, rounds_of, timed_encode
from sfvlm.speed.scaling import fits, line_fit, measure_panel, scaling_panels
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config

CPU = torch.device("cpu")
CEILINGS = {torch.float32: Ceiling(2e9, 1e9), torch.bfloat16: Ceiling(4e9, 1e9)}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets the number of threads of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def encoders() -> Encoders:
    return Encoders(CPU, torch.float32)


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "sf4"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply-adds are not counted, which takes as long as compiling."""
    monkeypatch.setattr(Encoder, "macs", 1)


def plain(name: str, image_size: int = 8) -> Encoder:
    """One convolution as an encoder: 3 -> 2 channels, 8 x 8 patches."""
    module = nn.Conv2d(3, 2, 8, stride=8, bias=False)
    return Encoder(name, name, module, image_size, 1, CPU, torch.float32, counted=module)


def summary(*values: float) -> dict[str, Any]:
    ordered = sorted(values)
    return {"median": ordered[len(values) // 2], "min": ordered[0], "max": ordered[-1], "values": list(values)}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("clip-l14-336", ("clip-l14-336", None, None)),
        ("clip-b16@49", ("clip-b16", None, 49)),
        ("clip-l14-336/chosen@36", ("clip-l14-336", "chosen", 36)),
        ("clip-l14-336/reduce:larger-patch@49", ("clip-l14-336", "reduce:larger-patch", 49)),
        ("sparseformer-clip-large@25", ("sparseformer-clip-large", None, 25)),
        ("openai/clip-vit-base-patch32@49", ("openai/clip-vit-base-patch32", None, 49)),
        ("timm:vit_tiny_patch16_224:/weights/a.safetensors@49", ("timm:vit_tiny_patch16_224:/weights/a.safetensors", None, 49)),
    ],
)  # fmt: skip
def test_names_say_what_how_and_how_many(name: str, parts: tuple[str, str | None, int | None]) -> None:
    assert encoder_name(name) == EncoderName(*parts)


def test_folders_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("sf@49", "chosen"):
        (tmp_path / name).mkdir()
    assert encoder_name(f"{tmp_path}/sf@49") == (f"{tmp_path}/sf@49", None, None)
    assert encoder_name(f"{tmp_path}/chosen@36") == (f"{tmp_path}/chosen", None, 36)


def test_the_dense_encoder_behind_a_name(clip_folder: Path, student_folder: Path) -> None:
    assert dense_base("clip-l14-336/chosen@49") == "clip-l14-336"
    assert dense_base(f"{clip_folder}@9") == str(clip_folder)
    assert dense_base("clip-l14-336") is None
    assert dense_base("sparseformer-clip-large@36") is None
    assert dense_base(f"{student_folder}@9") is None


def test_a_suite_has_every_alternative() -> None:
    names = suite("clip-l14-336")
    assert names[:3] == ["clip-l14-336", "clip-l14-336@16", "clip-l14-336@25"]
    assert names[7] == "clip-l14-336/inherited@49"
    assert names[8:] == [f"clip-l14-336/reduce:{method}@49" for method in METHODS]
    assert suite("clip-b16", (16, 36))[-1].endswith("@36")


def test_all_of_a_suite_share_the_dense_weights(encoders: Encoders, clip_folder: Path) -> None:
    opened = encoders.open_all(suite(str(clip_folder), (4, 9)))
    dense = opened[0].counted
    assert dense is not None
    own = {tensor.data_ptr() for tensor in dense.state_dict().values()}
    for encoder in opened[1:]:
        assert encoder.counted is not None
        others = {key: tensor for key, tensor in encoder.counted.state_dict().items() if tensor.data_ptr() not in own}
        assert not [key for key in others if key.startswith(("blocks.", "head.", "dense."))]
        assert sum(tensor.numel() for tensor in others.values()) < 0.25 * encoder.parameters
    assert [encoder.num_tokens for encoder in opened] == [16, 4, 9, 9] + [9] * len(METHODS)
    assert opened[1].name == "clip@4" and opened[1].source == str(clip_folder)
    assert opened[4].name == "clip/reduce:resolution@9"


def test_multiply_adds_are_counted_as_by_running(encoders: Encoders, clip_folder: Path, student_folder: Path) -> None:
    names = [*suite(str(clip_folder), (4, 9)), f"{clip_folder}/fresh@4", f"{student_folder}@9"]
    for encoder in encoders.open_all(names):
        assert encoder.counted is not None
        assert encoder.macs == macs(encoder.counted, encoder.image_size) > 0, encoder.name
        with torch.inference_mode():
            tokens = encoder.model(encoder.pixels(2, 0))
        states = tokens.hidden_states or (tokens.last_hidden_state,)
        assert states[-1].shape[1] == 1 + encoder.num_tokens, encoder.name


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_a_student_has_the_size_that_inheriting_gives(encoders: Encoders, clip_folder: Path, focusing: Any) -> None:
    teacher = open_teacher(clip_folder)
    expected, _ = inherit(teacher, student_config(teacher.config, focusing=focusing, num_tokens=9))
    found = encoders.open(f"{clip_folder}/{focusing}@9").counted
    assert found is not None
    shapes = {key: tensor.shape for key, tensor in found.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in expected.state_dict().items()}


def test_published_sizes() -> None:
    encoders = Encoders(torch.device("meta"), torch.float32)
    dense, student, average = encoders.open_all(["clip-l14-336", "clip-l14-336@49", "clip-l14-336/reduce:average@49"])
    # openai/clip-vit-large-patch14-336: 303,507,456 parameters of the vision model, and its projection.
    assert dense.parameters == 303_507_456 + 1024 * 768
    assert (dense.num_tokens, student.num_tokens, average.num_tokens) == (576, 49, 49)
    assert dense.macs == pytest.approx(190.96e9, rel=1e-4)
    assert student.macs < dense.macs / 8 and average.macs == pytest.approx(dense.macs, rel=1e-2)


def test_a_budget_is_of_one_twin_alone(encoders: Encoders, student_folder: Path) -> None:
    four, nine = encoders.open_all([str(student_folder), f"{student_folder}@9"])
    assert (four.num_tokens, nine.num_tokens) == (4, 9)
    assert (four.name, nine.name) == ("sf4", "sf4@9")
    model = tiny_model()
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(at_budget(model, 9)(pixels).last_hidden_state, model(pixels, num_tokens=9).last_hidden_state)
    assert model.config.budget == 4


def test_photos_rotate_and_are_the_same_for_all() -> None:
    first, second = plain("a"), plain("b")
    assert torch.equal(first.pixels(2, 0), second.pixels(2, 0))
    assert not torch.equal(first.pixels(2, 0), first.pixels(2, 1))


def test_a_round_has_the_first_and_a_few_others() -> None:
    a, b, c, d = (plain(name) for name in "abcd")
    assert list(rounds_of([a, b, c, d], 3, 2)) == [(None, [a, b, c]), (a, [d])]
    assert list(rounds_of([a], 3, 2)) == [(None, [a])]
    assert list(rounds_of([a, b], 1, 1)) == [(None, [a]), (a, [b])]


@pytest.mark.usefixtures("uncounted")
def test_an_encoder_is_compiled_once_and_a_suite_may_have_many(
    encoders: Encoders, small_published_clip: str, compiled_graphs: list[object]
) -> None:
    base = small_published_clip
    opened = encoders.open_all([base, f"{base}@9", *(f"{base}/reduce:{method}@9" for method in METHODS)])
    counts = []
    for measured in measure_encoders(opened, 2, ceilings=CEILINGS, ways=["compile"], repeats=1):
        assert measured.left_out == {}
        assert [row["how"] for row in measured.rows] == [None, "compile"]
        counts.append(len(compiled_graphs))
    assert counts == list(range(1, len(opened) + 1))


def test_what_the_compiler_cannot_take_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: object, inputs: object) -> object:
        raise RuntimeError("there is no compiler here")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    encoder = plain("a")
    assert encoder.counted is not None
    encoder.counted.eval()
    (measured,) = measure_encoders([encoder], 1, ceilings=CEILINGS, ways=["compile"], repeats=1)
    reason = "torch.compile cannot take the Conv2d: there is no compiler here"
    assert measured.left_out == {"a +compile": reason} and len(measured.rows) == 1


def test_a_floor_is_the_longer_of_products_and_reading() -> None:
    ceiling = Ceiling(operations=100.0, bandwidth=10.0)
    assert floor_seconds(macs=500, read_bytes=20, ceiling=ceiling) == 10.0
    assert floor_seconds(macs=50, read_bytes=20, ceiling=ceiling) == 2.0


def test_what_follows_from_a_latency() -> None:
    measures = {"encode_seconds": summary(4.0, 2.0, 5.0), "encoder_macs": summary(1e9), "read_bytes": summary(1e9)}
    found = derived(measures, batch_size=2, ceiling=Ceiling(operations=2e9, bandwidth=1e9))
    assert found["encode_throughput"]["median"] == 0.5
    assert (found["encode_throughput"]["min"], found["encode_throughput"]["max"]) == (0.4, 1.0)
    assert found["floor_seconds"]["median"] == 2.0  # of two photos' products; reading takes one second
    assert found["floor_share"]["median"] == 0.5
    assert derived(measures, 2, None).keys() == {"encode_throughput"}


def test_what_is_read_is_every_weight_and_every_pixel() -> None:
    encoder = plain("a", image_size=16)
    facts = encoder_facts(encoder, batch_size=3)
    weights, pixels = 2 * 3 * 64, 3 * 3 * 16 * 16
    assert facts == {
        "image_tokens": 1, "encoder_parameters": weights, "encoder_macs": 4 * weights, "read_bytes": 4 * (weights + pixels)
    }  # fmt: skip
    assert encoder_facts(replace(encoder, how="bfloat16"), 3)["read_bytes"] == 2 * weights + 4 * pixels
    assert "read_bytes" not in encoder_facts(replace(encoder, how="int8"), 3)


def test_a_measured_ceiling_is_the_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_module, "PRODUCT_SIDES", (4, 8))
    monkeypatch.setattr(floor_module, "BUFFER_BYTES", {"cpu": 400})
    times = iter(range(1000))
    durations = iter([9, 1, 2, 4, 4, 4, 9, 2, 2, 2, 2, 2, 9, 8, 8, 5, 8, 8])
    clock = {"now": 0.0}

    def now(device: torch.device) -> float:
        if next(times) % 2:
            clock["now"] += next(durations) * 1e-3
        return clock["now"]

    monkeypatch.setattr(floor_module, "now", now)
    ceiling = measure_ceiling(CPU, torch.float32)
    assert ceiling.operations == pytest.approx(2 * 8**3 / 2e-3)  # not the smaller product's 2 * 4**3 / 1e-3
    assert ceiling.bandwidth == pytest.approx(400 / 5e-3)


def test_ceilings_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    monkeypatch.setattr(
        rounds_module, "measure_ceiling", lambda device, dtype: asked.append(dtype) or Ceiling(1.0, 2.0)
    )
    ceilings = Ceilings(CPU)
    assert ceilings[torch.float32] == ceilings[torch.float32]
    assert asked == [torch.float32]
    assert ceilings.facts() == {"float32": {"operations": 1.0, "bandwidth": 2.0}}


def test_rounds_have_rows_that_say_against_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "SIDES_A_ROUND", 1)
    measured = list(
        measure_encoders([plain("a"), plain("b", 16), plain("c")], 2, ceilings=CEILINGS, repeats=3, warmups=0)
    )
    rows = [row for each in measured for row in each.rows]
    assert [row["model"] for row in rows] == ["a", "b", "c"]
    for row in rows:
        measures = row["measures"]
        seconds = measures["encode_seconds"]
        assert len(seconds["values"]) == 3
        assert row["reference"]["model"] == "a"
        pairs = zip(row["reference"]["encode_seconds"], seconds["values"], strict=True)
        assert seconds["times_less"] == pytest.approx(statistics.median(dense / own for dense, own in pairs))
        assert measures["encode_throughput"]["median"] == pytest.approx(2 / seconds["median"])
        assert measures["floor_share"]["median"] == pytest.approx(
            measures["floor_seconds"]["median"] / seconds["median"]
        )
        assert measures["encode_throughput"]["times_less"] is None
    assert rows[1]["image_size"] == 16 and rows[1]["measures"]["encoder_macs"]["times_less"] == 0.25


def test_ways_stand_beside_every_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, torch.Size]] = []

    def accelerate(model: nn.Module, how: str, pixels: Tensor) -> nn.Module:
        seen.append((how, pixels.shape))
        if how == "graph":
            raise ValueError("it needs a GPU.")
        return nn.Sequential(model)

    monkeypatch.setattr(rounds_module, "accelerate", accelerate)
    encoders = [plain("a"), plain("b")]
    measured = list(measure_encoders(encoders, 2, ceilings=CEILINGS, ways=["int8", "bfloat16", "graph"], repeats=1))
    names = [[row["model"] for row in each.rows] for each in measured]
    assert names == [["a", "a +int8", "a +bfloat16"], ["b", "b +int8", "b +bfloat16"]]
    assert measured[1].left_out == {"b +graph": "it needs a GPU."}
    assert seen[0] == ("int8", torch.Size([2, 3, 8, 8]))
    plain_row, int8, bfloat16 = measured[1].rows
    assert [row["how"] for row in measured[1].rows] == [None, "int8", "bfloat16"]
    assert int8["measures"]["encoder_macs"] == plain_row["measures"]["encoder_macs"]
    assert "floor_seconds" not in int8["measures"]  # 8-bit products are faster than any that was measured
    read = bfloat16["measures"]["read_bytes"]["median"]
    assert bfloat16["measures"]["floor_seconds"]["median"] == max(2 * 2 * 384 / 4e9, read / 1e9)


def test_energy_is_of_a_photo_and_counted_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100))
    monkeypatch.setattr(rounds_module, "now", lambda device: next(clock) * 0.2)
    counter = iter([10.0, 22.0])
    measures = timed_encode(plain("a"), 2, lambda: next(counter))(0)
    assert measures["encode_seconds"] == pytest.approx(0.2)  # the first call alone
    assert measures["photo_joules"] == 12.0 / 6  # three calls until half a second has passed


def test_rapl_counters_of_all_packages_wrap(tmp_path: Path) -> None:
    assert energy.rapl_meter(tmp_path) is None
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("1000000\n")
        (tmp_path / name / "energy_uj").write_text("900000\n")
    meter = energy.rapl_meter(tmp_path)
    assert meter is not None
    before = meter()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")  # past the end of its range
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("950000\n")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("990000\n")
    assert meter() - before == pytest.approx(0.2 + 0.05)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert energy.rapl_meter(tmp_path) is None


def test_nvml_counts_the_device_that_torch_means(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    meter = energy.open_meter(torch.device("cuda"))
    assert meter is not None and meter() == 2.5
    assert asked == ["GPU-1234"]
    nvml.nvmlInit = lambda: (_ for _ in ()).throw(RuntimeError)
    assert energy.open_meter(torch.device("cuda")) is None


def test_cost_grows_with_tokens_and_photos_and_not_with_pixels(encoders: Encoders, clip_folder: Path) -> None:
    sparse, dense = encoders.open_all([f"{clip_folder}/inherited@9", str(clip_folder)])
    places: dict[str, Any] = dict(budgets=(4, 9, 16), batch_sizes=(1, 2, 4), image_sizes=(32, 48, 64))
    panels = scaling_panels(sparse, dense, **places)
    rows = [row for panel in panels for row in measure_panel(panel, repeats=1, warmups=0)]
    work = {(row["panel"], row["model"], row["x"]): row["measures"]["encode_macs"]["median"] for row in rows}
    assert len(work) == len(rows) == 3 + 3 + 6
    by_tokens = [work["tokens", "clip/inherited@9", count] for count in places["budgets"]]
    line = line_fit(places["budgets"], by_tokens)
    assert line.explained > 0.999 and by_tokens[1] == sparse.macs
    assert [work["photos", "clip/inherited@9", count] for count in (1, 2, 4)] == [
        sparse.macs * count for count in (1, 2, 4)
    ]
    assert len({work["image size", "clip/inherited@9", side] for side in places["image_sizes"]}) == 1
    of_dense = [work["image size", "clip", side] for side in places["image_sizes"]]
    assert of_dense[0] == dense.macs and of_dense[2] > 4 * of_dense[0]


def test_a_published_clip_takes_photos_of_any_size(encoders: Encoders, small_published_clip: str) -> None:
    dense, sparse = encoders.open_all([small_published_clip, f"{small_published_clip}@4"])
    assert type(dense.model).__name__ == "CLIPVisionModelWithProjection"
    *_, panel = scaling_panels(sparse, dense, budgets=(4,), batch_sizes=(1,), image_sizes=(32, 64))
    tokens = [point.encoder.model(point.encoder.pixels(1, 0)).last_hidden_state.shape[1] for point in panel]
    assert tokens == [17, 5, 65, 5]


def test_only_sparse_encoders_scale(encoders: Encoders, clip_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"clip has no budget that could grow"):
        scaling_panels(encoders.open(str(clip_folder)), None)


def test_lines_by_least_squares() -> None:
    assert line_fit([1, 2, 3], [5.0, 7.0, 9.0]) == pytest.approx((3.0, 2.0, 1.0))
    assert line_fit([1, 2, 3], [1.0, 2.0, 1.0]).explained == pytest.approx(0.0)
    assert line_fit([4], [3.0]) == (3.0, 0.0, 0.0)


def scaling_rows() -> list[dict[str, Any]]:
    rows = []
    for panel, places in (("tokens", (16, 49)), ("photos", (1, 2)), ("image size", (224, 448))):
        for x in places:
            for model in ("sf", "dense") if panel == "image size" else ("sf",):
                seconds = summary(0.01 * x, 0.011 * x, 0.009 * x)
                measures = {"encode_seconds": seconds, "encode_macs": summary(1e9 * x)}
                rows.append({"model": model, "panel": panel, "x": x, "measures": measures})
    return rows


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_scaling_plot_is_written(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"scaling.{suffix}"
    plot_scaling(scaling_rows(), path)
    assert path.stat().st_size > 5000
    assert [(fit["panel"], fit["model"], fit["each"]) for fit in fits(scaling_rows())] == [
        ("tokens", "sf", "token"), ("photos", "sf", "photo"), ("image size", "sf", "pixel"), ("image size", "dense", "pixel")
    ]  # fmt: skip


def speed_row(model: str, tokens: int, seconds: float, **others: Any) -> dict[str, Any]:
    measures = {"image_tokens": summary(tokens), "encode_seconds": summary(seconds)}
    return {"model": model, "source": model, "batch_size": 1, "measures": measures} | others


def result_row(model: str, pretrained: str, tokens: int, quality: float, **metrics: float) -> dict[str, Any]:
    numbers = {"acc1": quality, "acc1_low": quality - 0.1, "acc1_high": quality + 0.1, "tokens": tokens} | metrics
    return {"dataset": "photos", "model": model, "pretrained": pretrained, "task": "x", "metrics": numbers}


SPEEDS = [
    speed_row("clip-tiny", 196, 0.1),
    speed_row("sf49", 49, 0.03),
    speed_row("sf49@36", 36, 0.02),
    speed_row("clip-tiny/reduce:resolution@49", 49, 0.025),
    speed_row("clip-tiny/reduce:average@49", 49, 0.1),
]
RESULTS = [
    result_row("teacher", "clip-tiny", 196, 0.9),
    result_row("sf49@49", "runs/sf49", 49, 0.8),
    result_row("sf49@36", "runs/sf49", 36, 0.7),
    result_row("sf49@16", "runs/sf49", 16, 0.5),
    result_row("lower resolution, 112 px", "clip-tiny", 49, 0.4),
]


def test_models_of_both_kinds_of_file_are_matched() -> None:
    spots, left_out = match(SPEEDS, RESULTS)
    assert [(spot.identity, spot.speed["model"]) for spot in spots] == [
        (Identity("clip-tiny", None, 196), "clip-tiny"),
        (Identity("sf49", None, 49), "sf49"),
        (Identity("sf49", None, 36), "sf49@36"),
        (Identity("clip-tiny", "reduce:resolution", 49), "clip-tiny/reduce:resolution@49"),
    ]
    assert left_out == ["sf49@16 (photos): no latency", "clip-tiny/reduce:average@49: no quality"]


def test_accelerated_models_have_another_latency_and_are_left_out() -> None:
    faster = [result_row(f"{name} +int8", "runs/sf49", 49, 0.6) for name in ("sf49@49", "sf49@36")]
    spots, left_out = match(SPEEDS, [*RESULTS, *faster])
    assert [spot.quality for spot in spots] == [0.9, 0.8, 0.7, 0.4]
    assert {"sf49@49 +int8 (photos): accelerated", "sf49@36 +int8 (photos): accelerated"} <= set(left_out)


def test_hosts_and_their_towers_are_matched() -> None:
    def vqa(model: str, pretrained: str, tokens: int) -> dict[str, Any]:
        metrics = {
            "accuracy": 0.5,
            "accuracy_low": 0.4,
            "accuracy_high": 0.6,
            "tokens": tokens,
            "retained": 1,
            "retained_low": 1,
        }
        return {"dataset": "scenes", "model": model, "pretrained": pretrained, "metrics": metrics}

    assert result_identity(vqa("reduce:average@49", "runs/llava with reduce:average@49", 49)) == Identity(
        "llava", "reduce:average", 49
    )
    assert result_identity(vqa("sf49@36", "runs/llava with runs/sf49@36", 36)) == Identity("sf49", None, 36)
    tiled = speed_row("llava-next", 2048, 0.5)  # other photos had other tiles
    spots, left_out = match([tiled], [vqa("llava-next", "runs/llava-next", 2880)])
    assert [spot.panel for spot in spots] == [("scenes", "accuracy")] and not left_out


def test_the_quality_plot_is_written_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    faster = speed_row("sf49 +int8", 49, 0.01, how="int8")
    larger = speed_row("sf49", 49, 9.0, batch_size=8)
    (tmp_path / "speed.json").write_text(json.dumps({"rows": [*SPEEDS, faster, larger]}))
    (tmp_path / "zeroshot.json").write_text(json.dumps({"results": RESULTS}))
    speeds, _ = read_files([tmp_path / "speed.json", tmp_path / "zeroshot.json"])
    assert [row["model"] for row in speeds] == [row["model"] for row in SPEEDS]
    flags = ["--plot", str(tmp_path / "quality.png"), "--results", str(tmp_path / "speed.json")]
    run(speed_command, SpeedCommand, [*flags, str(tmp_path / "zeroshot.json")])
    assert (tmp_path / "quality.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    printed = capsys.readouterr().out
    assert "Left out: sf49@16 (photos): no latency.\n" in printed and "Wrote" in printed


def test_every_alternative_looks_different_in_a_plot() -> None:
    assert len(set(OTHERS)) == len(OTHERS) >= len(METHODS)


def test_hosts_and_encoders_are_not_plotted_together(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    host = speed_row("sf49@36", 36, 0.5)
    host["measures"]["first_token_seconds"] = host["measures"].pop("encode_seconds")
    files = {"encoders": {"rows": SPEEDS[:2]}, "hosts": {"rows": [host]}, "zeroshot": {"results": RESULTS}}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"Of hosts \(sf49@36\) .*, and of encoders \(clip-tiny, sf49\) .*: plot one kind"
    ):
        plot_quality([tmp_path / f"{name}.json" for name in files], tmp_path / "quality.png")
    assert not (tmp_path / "quality.png").exists()


def test_a_plot_needs_both_kinds_and_a_model_in_both(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = {"speed": {"rows": SPEEDS}, "other": {"results": [result_row("x", "y", 3, 0.1)]}, "none": {"a": 1}}
    paths = {name: tmp_path / f"{name}.json" for name in files}
    for name, content in files.items():
        paths[name].write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    for chosen, message in (
        ([paths["speed"]], "needs a file of eval/zeroshot.py or eval/vqa.py too"),
        ([paths["other"]], r"needs a file of eval/speed.py \(encoders or hosts\) too"),
        (
            [paths["speed"], paths["other"]],
            r"No model is both in .*clip-tiny, sf49.* and in one of an evaluation \(x\)",
        ),
        ([paths["none"]], "was written neither by"),
        ([tmp_path / "broken.json"], "cannot be read as JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_quality(chosen, tmp_path / "quality.png")
    assert not (tmp_path / "quality.png").exists()


def test_without_matplotlib_a_plot_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as ended:
        run(speed_command, SpeedCommand, ["--scaling", "clip-b16@49", "--plot", str(tmp_path / "a.png")])
    assert ended.value.code == 2 and "pip install 'sfvlm[plot]'" in capsys.readouterr().err


@pytest.fixture
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "measure_ceiling", lambda device, dtype: CEILINGS[torch.float32])


@pytest.mark.usefixtures("small_ceilings")
def test_the_command_measures_encoders(
    clip_folder: Path, student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    names = [str(clip_folder), f"{clip_folder}@9", f"{student_folder}@9", f"{clip_folder}/reduce:stride@9"]
    numbers = ["--batch-sizes", "1", "2", "--repeats", "2", "--device", "cpu", "--out", str(out)]
    run(speed_command, SpeedCommand, ["--encoder", *names, *numbers])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["clip", "clip@9", "sf4@9", "clip/reduce:stride@9"]
    assert "share of the floor reached" in lines[0] and "how many times less than clip." in printed
    content = json.loads(out.read_text())
    assert [(row["batch_size"], row["source"]) for row in content["rows"]] == [
        (size, source) for size in (1, 2) for source in (names[0], names[0], str(student_folder), names[0])
    ]
    assert content["finished"] is True and content["settings"]["batch_sizes"] == [1, 2]
    assert content["ceilings"] == {"float32": {"operations": 2e9, "bandwidth": 1e9}}


@pytest.mark.usefixtures("small_ceilings", "uncounted")
def test_an_interrupted_suite_keeps_its_rounds(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, out = rounds_module._measure_round, tmp_path / "speed.json"

    def interrupted(encoders: list[Encoder], *rest: Any) -> Any:
        if encoders[1].name != "clip@4":
            raise KeyboardInterrupt
        return measure(encoders, *rest)

    monkeypatch.setattr(rounds_module, "_measure_round", interrupted)
    flags = ["--suite", str(clip_folder), "--budgets", "4", "9", "--batch-sizes", "1", "--repeats", "1"]
    with pytest.raises(SystemExit) as ended:
        run(speed_command, SpeedCommand, [*flags, "--device", "cpu", "--out", str(out)])
    assert ended.value.code == 130 and f"what was measured before is in {out}" in capsys.readouterr().err
    content = json.loads(out.read_text())
    assert [row["model"] for row in content["rows"]] == [
        "clip", "clip@4", "clip@9", "clip/inherited@9", "clip/reduce:resolution@9"
    ]  # fmt: skip
    assert content["finished"] is False


@pytest.mark.usefixtures("uncounted")
def test_the_command_plots_how_cost_grows(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / name for name in ("scaling.json", "scaling.png")}
    places = ["--budgets", "4", "9", "16", "--batch-sizes", "1", "2", "--image-sizes", "32", "64"]
    flags = ["--scaling", f"{clip_folder}/chosen@9", "--repeats", "1", "--device", "cpu", *places]
    run(speed_command, SpeedCommand, [*flags, "--out", str(files["scaling.json"]), "--plot", str(files["scaling.png"])])
    content = json.loads(files["scaling.json"].read_text())
    assert [(row["panel"], row["model"], row["x"]) for row in content["rows"]] == [
        *(("tokens", "clip/chosen@9", count) for count in (4, 9, 16)),
        *(("photos", "clip/chosen@9", count) for count in (1, 2)),
        *(("image size", model, side) for side in (32, 64) for model in ("clip", "clip/chosen@9")),
    ]
    assert len(content["fits"]) == 4 and content["finished"] is True
    assert files["scaling.png"].stat().st_size > 5000
    assert "the last place takes" in capsys.readouterr().out


class FixedOnnx:
    """What `OnnxEncoder` promises."""

    image_size, num_tokens = 32, 9

    def __init__(self, path: str, threads: int | None = None) -> None:
        self.threads = threads

    def __call__(self, pixels: Tensor) -> dict[str, Any]:
        return {"last_hidden_state": pixels.numpy()}


def test_an_onnx_file_is_an_encoder_on_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sfvlm.onnx.session, "OnnxEncoder", FixedOnnx)
    (tmp_path / "sf.onnx").touch()
    torch.set_num_threads(1)
    encoder = Encoders(CPU, torch.float32).open(str(tmp_path / "sf.onnx"))
    assert (encoder.name, encoder.num_tokens, encoder.image_size, encoder.model.threads) == ("sf.onnx", 9, 32, 1)  # type: ignore[attr-defined]
    (round_,) = measure_encoders([encoder], 2, ceilings=CEILINGS, ways=[], repeats=1)
    assert round_.rows[0]["measures"].keys() == {"image_tokens", "encode_seconds", "encode_throughput"}
    with pytest.raises(ValueError, match="runs on the CPU in float32 alone"):
        Encoders(CPU, torch.bfloat16).open(str(tmp_path / "sf.onnx"))


@pytest.mark.gpu
def test_cuda_measures_encoders_and_what_they_draw(clip_folder: Path) -> None:
    device = torch.device("cuda")
    encoders = Encoders(device, torch.bfloat16).open_all([str(clip_folder), f"{clip_folder}@9"])
    meter, ceilings = energy.open_meter(device), Ceilings(device)
    (found,) = measure_encoders(encoders, 2, ceilings=ceilings, meter=meter, repeats=2)
    for row in found.rows:
        assert 0 < row["measures"]["floor_share"]["median"] < 1
        assert meter is None or row["measures"]["photo_joules"]["max"] > 0
    assert ceilings[torch.bfloat16].operations > ceilings[torch.float32].operations
