"""The cheap alternatives as towers: what each keeps of the dense tower, and that hosts take them."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import randomize
from tiny_hosts import KINDS, SIDE, logits, opened, photo
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, CLIPVisionModel

import sfvlm
from sfvlm.alternatives.configuration import ReducedTowerConfig
from sfvlm.alternatives.controls import LargerPatch, LowerResolution, TokenMerging
from sfvlm.alternatives.costs import macs
from sfvlm.alternatives.towers import METHODS, ReducedTower, reduce, reduce_host
from sfvlm.cli import run
from sfvlm.commands.options.swap import SwapCommand
from sfvlm.commands.swap import swap_command
from sfvlm.hosts.folders import swap_folder, undo_folder
from sfvlm.hosts.host import open_host
from sfvlm.hosts.swap import swap
from sfvlm.hosts.tower import check_tower
from sfvlm.teachers.open import DenseTransformer, open_teacher

GRID = ("resolution", "larger-patch", "stride", "average")
MERGING = ("merging", "merging-decreasing", "merging-gradual")


@pytest.fixture(scope="module")
def dense(clip_folder_of_many: Path) -> DenseTransformer:
    return open_teacher(clip_folder_of_many).model


@pytest.fixture(scope="module")
def clip(clip_folder_of_many: Path) -> CLIPVisionModel:
    return CLIPVisionModel.from_pretrained(clip_folder_of_many, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def clip_folder_of_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP of four blocks and 8 x 8 patches."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=4
    )
    folder = tmp_path_factory.mktemp("dense") / "clip"
    randomize(CLIPVisionModel(config), scale=0.2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(hosts: dict[str, Path]) -> DenseTransformer:
    """Two blocks, 4 x 4 patches, no class token."""
    return open_teacher(hosts["llava_onevision"]).model


def photos(side: int = 32, count: int = 3) -> Tensor:
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, size=(side, side), mode="bicubic")


@torch.no_grad()
def states_of(tower: ReducedTower, pixels: Tensor | None = None) -> tuple[Tensor, ...]:
    return tower(photos() if pixels is None else pixels, output_hidden_states=True).hidden_states


@torch.no_grad()
def dense_states(dense: DenseTransformer, pixels: Tensor | None = None) -> tuple[Tensor, ...]:
    return dense(photos() if pixels is None else pixels).hidden_states


def kept_places(states: tuple[Tensor, ...], dense: tuple[Tensor, ...], layer: int) -> Tensor:
    """Which image token of the dense tower each token is, -1 where it is none: (B, N)."""
    same = (states[layer][:, 1:, None] == dense[layer][:, None, 1:]).all(dim=-1)  # (B, N, P)
    return torch.where(same.any(dim=-1), same.int().argmax(dim=-1), -1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("read_layer", [-1, -2])
def test_the_layer_that_is_read_has_so_many_tokens_and_the_class_token(
    method: str, read_layer: int, dense: DenseTransformer
) -> None:
    tower = reduce(dense, method, 16, read_layer)
    check_tower(tower)
    states = states_of(tower)
    assert len(states) == 5 and states[read_layer].shape == (3, 1 + 16, 64)
    assert method in MERGING or {state.shape[1] for state in states} == {1 + 16}
    assert all(state.isfinite().all() for state in states)


@pytest.mark.parametrize("method", METHODS)
def test_towers_without_class_token_give_so_many_tokens(method: str, siglip: DenseTransformer) -> None:
    states = states_of(reduce(siglip, method, 9, -1), photos(SIDE))
    assert states[-1].shape == (3, 9, 32) and states[-1].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_full_budget_gives_the_dense_hosts_logits(method: str, kind: str, hosts: dict[str, Path]) -> None:
    views = (photo(0, (100, 40)),)
    expected = logits(*opened(hosts[kind]), photos=views)
    model, processor = opened(hosts[kind])
    swapped = swap(model, processor, reduce_host(hosts[kind], method, 16))
    assert swapped.plan.tokens == swapped.plan.host.tokens == 16
    torch.testing.assert_close(logits(model, processor, photos=views), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 4, 9, 25, 36])
def test_stride_takes_dense_tokens_nearest_the_centres_of_an_even_grid(count: int, dense: DenseTransformer) -> None:
    places = kept_places(states_of(reduce(dense, "stride", count)), dense_states(dense), -2)
    side = math.isqrt(count)
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * 8 / side - 0.5
    for found, centre in ((places // 8, centres[:, None]), (places % 8, centres[None, :])):
        expected = torch.as_tensor(centre).expand(side, side).flatten()
        nearest = (torch.arange(8)[:, None] - expected).abs().amin(dim=0)
        torch.testing.assert_close((found - expected).abs(), nearest.expand(3, -1))


@pytest.mark.parametrize("count", [1, 9, 16])
def test_average_is_adaptive_pooling_of_every_state(count: int, dense: DenseTransformer) -> None:
    side = math.isqrt(count)
    for ours, theirs in zip(states_of(reduce(dense, "average", count)), dense_states(dense), strict=True):
        pooled = F.adaptive_avg_pool2d(theirs[:, 1:].mT.reshape(3, 64, 8, 8), (side, side)).flatten(2).mT
        assert torch.equal(ours[:, :1], theirs[:, :1])
        torch.testing.assert_close(ours[:, 1:], pooled)


@pytest.mark.parametrize("read_layer", [-1, -2, 1])
@torch.no_grad()
def test_class_attention_keeps_what_eager_attention_ranks_highest(
    read_layer: int, dense: DenseTransformer, clip: CLIPVisionModel
) -> None:
    pixels, count, contextual = photos(), 19, 3  # 19 * 10 / 64
    output = clip(pixels, output_attentions=True, output_hidden_states=True)
    block = range(4)[read_layer if read_layer < 0 else read_layer - 1]
    ranked = output.attentions[block].mean(dim=1)[:, 0, 1:].topk(count - contextual).indices
    states = states_of(reduce(dense, "cls-attention", count, read_layer))
    theirs = dense_states(dense)
    torch.testing.assert_close(theirs[read_layer], output.hidden_states[read_layer], atol=1e-4, rtol=1e-4)
    places = kept_places(states, theirs, read_layer)
    for row, best in zip(places, ranked, strict=True):
        kept = row[row >= 0]
        assert set(best.tolist()) <= set(kept.tolist()) and len(kept) < count  # some of the contextual are merged
        assert kept.tolist() == sorted(kept.tolist())
    assert torch.equal(kept_places(states, theirs, 0), places)


@torch.no_grad()
def test_contextual_tokens_are_means_of_the_rest_by_the_likeness_of_keys(
    dense: DenseTransformer, clip: CLIPVisionModel
) -> None:
    pixels, count, contextual = photos(count=1), 19, 3
    projection = next(part for name, part in clip.named_modules() if name.endswith("layers.2.self_attn.k_proj"))
    found: list[Tensor] = []
    hook = projection.register_forward_hook(lambda _, __, keys: found.append(keys))
    output = clip(pixels, output_attentions=True)
    hook.remove()
    key = F.normalize(found[0][0, 1:].view(64, 4, 16).mean(dim=1), dim=-1)
    ranked = output.attentions[2][0].mean(dim=0)[0, 1:].argsort(descending=True)
    best, rest = ranked[:16].tolist(), sorted(ranked[16:].tolist())
    targets = [rest[number * 48 // contextual] for number in range(contextual)]
    members: dict[int, list[int]] = {place: [place] for place in best + targets}
    for place in rest:
        if place not in targets:
            members[max(targets, key=lambda target: float(key[place] @ key[target]))].append(place)
    tokens = dense_states(dense, pixels)[-2][0, 1:]
    expected = torch.stack([tokens[members[place]].mean(dim=0) for place in sorted(members)])
    states = states_of(reduce(dense, "cls-attention", count), pixels)
    torch.testing.assert_close(states[-2][0, 1:], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_class_token_the_attention_that_tokens_receive_decides(
    siglip: DenseTransformer, hosts: dict[str, Path]
) -> None:
    model, _ = opened(hosts["llava_onevision"], attn_implementation="eager")
    pixels = photos(SIDE)
    received = model.model.vision_tower(pixels, output_attentions=True).attentions[-1].mean(dim=(1, 2))  # (B, P)
    states, theirs = states_of(reduce(siglip, "cls-attention", 3, -1), pixels), dense_states(siglip, pixels)
    for photo_states, photo_theirs, row in zip(states[-1], theirs[-1], received, strict=True):
        best = row.topk(3).indices.sort().values  # 3 * 10 / 64 rounds to no contextual token
        assert torch.equal(photo_states, photo_theirs[best])


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_diversity_is_the_naive_greedy_choice(count: int, dense: DenseTransformer) -> None:
    theirs = dense_states(dense)
    places = kept_places(states_of(reduce(dense, "diversity", count)), theirs, -2)
    for row, tokens in zip(places, theirs[-2][:, 1:], strict=True):

        def distance(a: int, b: int, tokens: Tensor = tokens) -> float:
            return 1 - float(F.cosine_similarity(tokens[a].double(), tokens[b].double(), dim=0))

        table = [[distance(a, b) for b in range(64)] for a in range(64)]
        chosen = [max(range(64), key=lambda a: min(table[a][b] for b in range(64) if b != a))]
        while len(chosen) < count:
            left = [a for a in range(64) if a not in chosen]
            chosen.append(max(left, key=lambda a: min(table[a][b] for b in chosen)))
        assert row.tolist() == sorted(chosen)


def test_the_same_tokens_twice_are_not_taken_twice(dense: DenseTransformer) -> None:
    flat = copy.deepcopy(dense)
    flat.positions.data[1:] = flat.positions.data[1]
    states = states_of(reduce(flat, "diversity", 10), torch.zeros(1, 3, 32, 32))
    assert states[-2].shape == (1, 11, 64) and states[-2].isfinite().all()


def plain_scattered(number: int) -> int:
    number = (number + 0x9E3779B9) % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number = ((number ^ number >> shift) * factor) % 2**32
    return number ^ number >> 16


def test_random_tokens_are_those_that_the_photo_draws(dense: DenseTransformer) -> None:
    pixels = photos()
    states, theirs = states_of(reduce(dense, "random", 10), pixels), dense_states(dense, pixels)
    drawn = []
    for each, kept, tokens in zip(pixels, states[-2], theirs[-2], strict=True):
        seed = sum(round(float(value)) for value in (each * 4096).flatten()) % 2**32
        order = sorted(range(64), key=lambda patch: plain_scattered((plain_scattered(seed) + patch) % 2**32))
        places = sorted(order[:10])
        assert torch.equal(kept, tokens[[0, *(place + 1 for place in places)]])
        drawn.append(places)
    assert len({tuple(places) for places in drawn}) == len(drawn)


def test_random_tokens_come_from_everywhere_and_fewer_are_some_of_more(dense: DenseTransformer) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(400, 3, 32, 32)
    tower = reduce(dense, "random", 16)
    with torch.no_grad():
        kept = tower(pixels).places >= 0
        fewer = reduce(dense, "random", 4)(pixels).places >= 0
    assert (kept.sum(1) == 16).all() and (fewer <= kept).all()
    share = kept.float().mean(0)  # of 400 photos: 0.25 each, with a standard deviation of 0.022
    assert share.min() > 0.15 and share.max() < 0.35


def test_the_zero_shot_controls_are_the_same_methods(dense: DenseTransformer) -> None:
    pixels = photos()
    for method, control in (
        ("resolution", LowerResolution(dense, 3)),
        ("larger-patch", LargerPatch(dense, 3, 32)),
        ("merging", TokenMerging(dense, 9, "early")),
        ("merging-decreasing", TokenMerging(dense, 9, "decreasing")),
        ("merging-gradual", TokenMerging(dense, 9, "gradual")),
    ):
        with torch.no_grad():
            expected = control(pixels).hidden_states
        ours = states_of(reduce(dense, method, 9, -1), pixels)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)), method


def test_the_kernel_of_a_larger_patch_is_made_once_for_a_size_and_a_weight(
    dense: DenseTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Noted(LargerPatch):
        def __init__(self, dense: DenseTransformer, side: int, image_size: int) -> None:
            made.append(image_size)
            super().__init__(dense, side, image_size)

    monkeypatch.setattr("sfvlm.alternatives.methods.LargerPatch", Noted)
    tower = reduce(copy.deepcopy(dense), "larger-patch", 9)
    keys = list(tower.state_dict())
    first, second = states_of(tower)[-2], states_of(tower)[-2]
    assert torch.equal(first, second) and made == [32]
    assert list(tower.state_dict()) == keys
    states_of(tower, photos(48))
    with torch.no_grad():
        for parameter in tower.dense.patch.parameters():
            parameter.mul_(2)
            assert not torch.equal(states_of(tower)[-2], first)
    assert made == [32, 48, 32, 32]

    twin = copy.deepcopy(tower)
    with torch.no_grad():
        twin.dense.patch.weight.div_(2)
        twin.dense.patch.bias.div_(2)
    tower.save_pretrained(tmp_path)
    assert torch.equal(states_of(twin)[-2], first)
    assert torch.equal(states_of(AutoModel.from_pretrained(tmp_path))[-2], states_of(tower)[-2])


def test_the_kernel_of_a_larger_patch_serves_with_and_without_gradients(dense: DenseTransformer) -> None:
    tower, pixels = reduce(copy.deepcopy(dense), "larger-patch", 9), photos()
    with torch.inference_mode():
        expected = states_of(tower)[-2]
        assert torch.equal(states_of(reduce(copy.deepcopy(dense), "larger-patch", 9))[-2], expected)
    found = tower(pixels.requires_grad_(True), output_hidden_states=True).hidden_states[-2]
    found.square().sum().backward()
    torch.testing.assert_close(found.detach(), expected)
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_the_kernel_of_a_larger_patch_is_no_cost_of_a_photo(dense: DenseTransformer) -> None:
    tower = reduce(copy.deepcopy(dense), "larger-patch", 9)
    assert macs(tower, 32) == macs(tower, 32) == macs(LargerPatch(dense, 3, 32), 32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tower_of", ["dense", "siglip"])
def test_every_method_compiles_whole(
    method: str, tower_of: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = reduce(request.getfixturevalue(tower_of), method, 9)
    pixels = photos(32 if tower_of == "dense" else SIDE)
    torch._dynamo.reset()
    compiled: Any = torch.compile(tower, backend="eager", fullgraph=True, dynamic=False)
    for found, expected in zip(states_of(compiled, pixels), states_of(tower, pixels), strict=True):
        torch.testing.assert_close(found, expected)


def test_merging_reaches_its_tokens_before_the_layer_that_is_read(dense: DenseTransformer) -> None:
    counts = {method: [len(state[0]) - 1 for state in states_of(reduce(dense, method, 10, -2))] for method in MERGING}
    assert counts == {
        "merging": [64, 35, 19, 10, 10],
        "merging-decreasing": [64, 32, 16, 10, 10],
        "merging-gradual": [64, 40, 20, 10, 10],
    }


@pytest.mark.parametrize("method", METHODS)
def test_photos_of_a_batch_do_not_see_each_other(method: str, dense: DenseTransformer) -> None:
    tower, pixels = reduce(dense, method, 16), photos()
    alone = torch.cat([states_of(tower, each[None])[-2] for each in pixels])
    torch.testing.assert_close(states_of(tower, pixels)[-2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "larger-patch"])
def test_gradients_reach_the_patches(method: str, dense: DenseTransformer) -> None:
    tower = reduce(copy.deepcopy(dense).requires_grad_(True), method, 16)
    tower(photos(), output_hidden_states=True).hidden_states[-2].square().sum().backward()
    assert tower.dense.patch.weight.grad is not None and tower.dense.patch.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_tower_folder_gives_the_same_bits(method: str, dense: DenseTransformer, tmp_path: Path) -> None:
    tower = reduce(dense, method, 16, -3)
    tower.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is ReducedTower is sfvlm.ReducedTower
    assert (again.config.method, again.config.budget, again.config.read_layer) == (method, 16, -3)
    assert all(torch.equal(a, b) for a, b in zip(states_of(again), states_of(tower), strict=True))


def test_every_parameter_is_initialised_whatever_memory_held(siglip: DenseTransformer, dense: DenseTransformer) -> None:
    for model in (siglip, dense):
        with torch.device("meta"):
            tower = ReducedTower(reduce(model, "average", 9, -1).config)
        tower.to_empty(device="cpu")
        for parameter in tower.parameters():
            parameter.data.fill_(torch.nan)
        tower.apply(tower._init_weights)
        assert all(parameter.isfinite().all() for parameter in tower.parameters())


@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("llava", method) for method in METHODS), ("llava_next", "diversity"), ("llava_onevision", "cls-attention")],
)
def test_a_swapped_folder_opens_as_the_host_in_memory(
    kind: str, method: str, hosts: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = opened(hosts[kind])
    swap(model, processor, reduce_host(hosts[kind], method, 9))
    manifest = swap_folder(hosts[kind], reduce_host(hosts[kind], method, 9), tmp_path / "out")
    assert manifest["tower"]["method"] == method and manifest["tokens"]["after"] == 9
    again = opened(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(logits(*again), logits(model, processor))
    if method == "average":
        undo_folder(tmp_path / "out", tmp_path / "dense")
        assert torch.equal(logits(*opened(tmp_path / "dense")), logits(*opened(hosts[kind])))


def test_half_precision_hosts_take_them(hosts: dict[str, Path]) -> None:
    for method in METHODS:
        model, processor = opened(hosts["llava"], dtype=torch.bfloat16)
        swap(model, processor, reduce_host(hosts["llava"], method, 9))
        inputs = processor(text=["<image> hi"], images=[photo()], return_tensors="pt")
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()


def test_the_command_reduces_the_hosts_own_tower(
    hosts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--host", str(hosts["llava"]), "--tower", "reduce:diversity", "--num-tokens", "7"]
    run(swap_command, SwapCommand, [*flags, "--out", str(tmp_path / "out")])
    assert "7 tokens a photo instead of 16." in capsys.readouterr().out
    config = AutoConfig.from_pretrained(tmp_path / "out").vision_config
    assert isinstance(config, ReducedTowerConfig) and (config.method, config.budget) == ("diversity", 7)
    assert json.loads((tmp_path / "out" / "swap.json").read_text())["tower"]["method"] == "diversity"
    host = open_host(str(tmp_path / "out"), device="cpu")
    assert host.image_tokens(photo()) == 7
    assert len(host.answer([photo(), photo(1)], ["Is there a dog?"] * 2, max_new_tokens=2)) == 2


@pytest.mark.parametrize(
    ("tower", "num_tokens", "message"),
    [
        ("reduce:blur", 9, f"There is no method 'blur'; the methods are {', '.join(METHODS)}."),
        ("reduce:average", None, "'average' has no budget of its own: give --num-tokens."),
        ("reduce:average", 17, "num_tokens is 17, and the dense tower has 16 patches: ask for 1 to 16."),
        ("reduce:diversity", 0, "num_tokens is 0, and the dense tower has 16 patches: ask for 1 to 16."),
        *((f"reduce:{method}", 8, "8 is no square: ask for 4 or 9 tokens.") for method in GRID),
        ("reduce:merging", 4, "1 blocks cannot merge 16 tokens down to 4: each at most halves them."),
    ],
)
def test_bad_input_ends_with_one_sentence(
    tower: str,
    num_tokens: int | None,
    message: str,
    hosts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--host", str(hosts["llava"]), "--tower", tower, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_code:
        run(swap_command, SwapCommand, [*flags, *(["--num-tokens", str(num_tokens)] if num_tokens is not None else [])])
    assert exit_code.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS)
def test_another_layer_than_the_hosts_is_refused_where_it_matters(
    method: str, hosts: dict[str, Path], tmp_path: Path
) -> None:
    tower = reduce(open_teacher(hosts["llava"]), method, 9, -1)
    model, processor = opened(hosts["llava"])
    message = r"reads layer -2 of its tower, .* 9 tokens of layer -1: reduce it with read_layer=-2"
    if method in (*GRID, "random"):
        swapped = swap(model, processor, tower)
        found = logits(model, processor)
        swapped.undo()
        swap(model, processor, reduce_host(hosts["llava"], method, 9))
        assert torch.equal(logits(model, processor), found)
        return
    with pytest.raises(ValueError, match=message):
        swap_folder(hosts["llava"], tower, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=message):
        swap(model, processor, tower)


@pytest.mark.parametrize("method", METHODS)
def test_several_layers_are_read_at_the_same_places_but_never_merged(method: str, dense: DenseTransformer) -> None:
    config = reduce(dense, method, 16, -2).config
    if method in MERGING:
        with pytest.raises(ValueError, match=r"reads layer -3 and -2 .* use another method"):
            config.check_layers([2, 3])
    else:
        config.check_layers([2, 3])
        config.check_layers([-3, -2])
    config.check_layers([3])
    config.check_layers([-2])


@pytest.mark.parametrize("read_layer", [0, 5, -5])
def test_a_layer_without_a_block_before_it_is_refused(read_layer: int, dense: DenseTransformer) -> None:
    with pytest.raises(ValueError, match=f"read_layer is {read_layer}, .* 4 blocks give layers -1 to -4"):
        reduce(dense, "average", 16, read_layer)


def test_a_tower_has_one_budget_and_refuses_photos_that_are_too_small(
    hosts: dict[str, Path], dense: DenseTransformer
) -> None:
    model, processor = opened(hosts["llava"])
    with pytest.raises(ValueError, match="num_tokens is 4, and this tower always gives 9"):
        swap(model, processor, reduce_host(hosts["llava"], "average", 9), 4)
    tower: Any = reduce(dense, "stride", 16)
    with pytest.raises(ValueError, match="num_tokens is 16, and the dense tower has 9 patches"):
        tower(torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match="must be"):
        tower(torch.zeros(3, 32, 32))
    wide = states_of(reduce(dense, "average", 16), torch.zeros(1, 3, 32, 48))
    assert wide[-2].shape == (1, 17, 64)
