"""A host's two sides: what they share, how they open, and replies that are written in turns."""

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_hosts import held_up, never_ends, photo, tiny_tower
from tiny_llava import tiny_llava

from sfvlm.alternatives.towers import reduce_host
from sfvlm.evaluate.encoding import Student
from sfvlm.evaluate.ranking import Ranker
from sfvlm.hosts.folders import swap_folder
from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.reply import Clock, Timings, Turns
from sfvlm.hosts.template import user_message
from sfvlm.look.sides import Sides, open_sides, twins_with, with_tower, write_together
from sfvlm.look.words import budget_in_words, cost_in_words, difference_in_words, word_difference
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.views import tower_pixels
from sfvlm.teachers.open import open_teacher
from sfvlm.zoo.names import resolve

PHOTO = photo(1)
QUESTION = "What color is the biggest object?"


def said(host: Host, max_new_tokens: int = 8) -> str:
    return host.answer([PHOTO], [QUESTION], max_new_tokens=max_new_tokens)[0]


@pytest.fixture(scope="module")
def dense(hosts: dict[str, Path]) -> Host:
    return open_host(hosts["llava"], device="cpu")


@pytest.fixture(scope="module")
def sides(swapped_folder: Path) -> Sides:
    return open_sides(swapped_folder, device="cpu")


def test_both_sides_of_a_swapped_folder_answer_as_its_hosts_do(sides: Sides, dense: Host, swapped_folder: Path) -> None:
    assert sides.note == "" and list(sides.hosts) == ["dense", "sparse"]
    assert sides.dense is not None and sides.sparse is not None
    assert said(sides.dense) == said(dense)
    assert said(sides.sparse) == said(open_host(swapped_folder, device="cpu"))
    assert (sides.dense.token_budget, sides.sparse.token_budget) == (16, 49)
    assert budget_in_words(sides.sparse) == "49 tokens a photo"


def test_twins_with_few_tokens_share_one_dense_tower_and_leave_the_host_as_it_is(dense: Host) -> None:
    before = said(dense)
    twins = twins_with(dense, {"even": "reduce:stride@4", "mean": "reduce:average@9"})
    assert [twin.token_budget for twin in twins.values()] == [4, 9]
    even, mean = (dict(twin.model.named_parameters()) for twin in twins.values())
    assert all(even[name].data_ptr() == mean[name].data_ptr() for name in even) and even.keys() == mean.keys()
    assert said(dense) == before and said(twins["even"]) != ""


def test_the_sides_share_what_is_not_the_tower(sides: Sides) -> None:
    assert sides.dense is not None and sides.sparse is not None
    ours, theirs = (dict(host.model.named_parameters()) for host in (sides.sparse, sides.dense))
    shared = {name for name in ours if name in theirs and ours[name].data_ptr() == theirs[name].data_ptr()}
    assert shared == {name for name in theirs if ".vision_tower." not in name}
    assert sides.dense.turns is sides.sparse.turns


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_hosts_with_tiles_have_two_sides_too(kind: str, hosts: dict[str, Path], tmp_path: Path) -> None:
    swap_folder(hosts[kind], tiny_tower(kind=kind), tmp_path / "out")
    sides = open_sides(tmp_path / "out", device="cpu")
    assert sides.dense is not None and sides.sparse is not None
    assert said(sides.dense) == said(open_host(hosts[kind], device="cpu"))
    assert said(sides.sparse) == said(open_host(tmp_path / "out", device="cpu"))


def test_a_folder_with_a_cheap_alternative_opens_and_has_no_budgets(hosts: dict[str, Path], tmp_path: Path) -> None:
    swap_folder(hosts["llava"], reduce_host(hosts["llava"], "average", 4), tmp_path / "out")
    sides = open_sides(tmp_path / "out", device="cpu")
    assert sides.sparse is not None and sides.tower is None and not sides.has_budgets
    assert said(sides.sparse) == said(open_host(tmp_path / "out", device="cpu"))
    with pytest.raises(ValueError, match="always gives the same number"):
        sides.at_budget(9)


def test_without_the_dense_tower_the_manifests_host_serves_or_a_note_says_why(
    swapped_folder: Path, hosts: dict[str, Path], dense: Host, tmp_path: Path
) -> None:
    folder = shutil.copytree(swapped_folder, tmp_path / "lost")
    shutil.rmtree(folder / "dense")
    from_manifest = open_sides(folder, device="cpu")
    assert from_manifest.dense is not None and said(from_manifest.dense) == said(dense)
    manifest = (folder / "swap.json").read_text()
    (folder / "swap.json").write_text(manifest.replace(str(hosts["llava"]), str(tmp_path / "gone")))
    alone = open_sides(folder, device="cpu")
    assert alone.dense is None and alone.sparse is not None and "gone is not there" in alone.note
    other = shutil.copytree(hosts["llava"], tmp_path / "gone")
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if "language_model" in name and name.endswith("q_proj.weight"))
    save_file(tensors | {name: tensors[name] + 1}, other / "model.safetensors", {"format": "pt"})
    changed = open_sides(folder, device="cpu")
    assert changed.dense is None and "gone has other weights now" in changed.note
    assert changed.sparse is not None and said(changed.sparse) == said(alone.sparse)
    assert not alone.has_budgets
    assert open_sides(folder, num_tokens=49, device="cpu").sparse is not None
    with pytest.raises(ValueError, match=r"keeps its 49 tokens: leave out --num-tokens 25"):
        open_sides(folder, num_tokens=25, device="cpu")


def test_another_budget_leaves_the_side_itself_alone(sides: Sides, hosts: dict[str, Path]) -> None:
    assert sides.sparse is not None
    before = said(sides.sparse)
    assert sides.at_budget(49) is sides.sparse
    fewer = sides.at_budget(16)
    assert fewer.token_budget == 16
    assert said(fewer) == said(with_tower(open_host(hosts["llava"], device="cpu"), tiny_tower(), 16))
    assert (sides.sparse.token_budget, said(sides.sparse)) == (49, before)


def test_a_host_without_a_tower_is_dense_alone(hosts: dict[str, Path], tmp_path: Path) -> None:
    sides = open_sides(hosts["llava"], device="cpu")
    assert sides.sparse is None and "--tower" in sides.note
    tiny_tower(hidden_size=64).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="32 wide, and the tower's are 64 wide"):
        open_sides(hosts["llava"], tmp_path / "wide", device="cpu")


def test_a_swapped_folder_takes_no_tower(swapped_folder: Path) -> None:
    with pytest.raises(ValueError, match="has its sparse tower inside"):
        open_sides(swapped_folder, "sparseformer-tiny-49")


def test_replies_written_together_say_what_each_says_alone(sides: Sides) -> None:
    stop = threading.Event()
    messages = [user_message(QUESTION, 1)]
    replies = {name: host.stream(messages, [PHOTO], max_new_tokens=8, stop=stop) for name, host in sides.hosts.items()}
    pieces = list(write_together(replies, stop))
    for name, host in sides.hosts.items():
        mine = [piece for piece in pieces if piece.side == name]
        assert "".join(piece.text for piece in mine).strip() == said(host)
        assert [piece.ended for piece in mine] == [False] * (len(mine) - 1) + [True]
        timings = replies[name].timings
        assert timings.encode_ms is not None and timings.first_token_ms is not None
        assert 0 < timings.encode_ms < timings.first_token_ms


@pytest.fixture
def talkers(tmp_path: Path) -> Sides:
    """Two sides that say "a a a ..." and do not end by themselves."""
    host = open_host(tiny_llava(tmp_path), device="cpu")
    never_ends(host)
    return Sides("talkers", host, with_tower(host, tiny_tower()))


def test_replies_are_written_a_word_each(talkers: Sides) -> None:
    stop = threading.Event()
    replies = {
        name: host.stream([user_message("hello")], max_new_tokens=30, stop=stop) for name, host in talkers.hosts.items()
    }
    order = [piece.side for piece in write_together(replies, stop) if piece.text]
    first_end = min(max(i for i, side in enumerate(order) if side == name) for name in replies)
    assert set(order[: len(order) // 2]) == {"dense", "sparse"}
    assert first_end > len(order) * 0.7


def test_leaving_early_ends_both(talkers: Sides) -> None:
    stop = threading.Event()
    replies = {
        name: host.stream([user_message("hello")], max_new_tokens=400, stop=stop)
        for name, host in talkers.hosts.items()
    }
    pieces = write_together(replies, stop)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert all(reply.timings.new_tokens < 400 for reply in replies.values())
    assert talkers.dense is not None and talkers.dense.answer([None], ["hello"], max_new_tokens=2)


def test_who_leaves_early_waits_for_neither_side(talkers: Sides) -> None:
    assert talkers.dense is not None and talkers.sparse is not None
    stop = threading.Event()
    replies = {
        name: host.stream([user_message("hello")], max_new_tokens=400, stop=stop)
        for name, host in talkers.hosts.items()
    }
    with held_up(talkers.sparse, after=4) as held:
        pieces = write_together(replies, stop)
        next(pieces)
        assert held.waits.wait(10)
        before = time.monotonic()
        pieces.close()  # type: ignore[attr-defined]
        assert time.monotonic() - before < 2 and stop.is_set()
    assert talkers.dense.answer([None], ["hello"], max_new_tokens=2)
    assert all(reply.timings.new_tokens < 12 for reply in replies.values())


def test_an_error_of_one_side_does_not_end_the_other(talkers: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talkers.sparse is not None

    def fail(**_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(talkers.sparse.model, "generate", fail)
    stop = threading.Event()
    replies = {
        name: host.stream([user_message("hello")], max_new_tokens=3, stop=stop) for name, host in talkers.hosts.items()
    }
    pieces = list(write_together(replies, stop))
    assert [str(piece.error) for piece in pieces if piece.error] == ["out of memory"]
    assert "".join(piece.text for piece in pieces if piece.side == "dense").split() == ["a"] * 3


def test_turns_go_round_in_the_order_of_asking() -> None:
    turns, seen = Turns(), []
    started = [threading.Event() for _ in range(3)]

    def work(number: int) -> None:
        started[number].set()
        with turns:
            seen.append(number)
            turns.pass_on()
            seen.append(number)

    with turns:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for number, thread in enumerate(threads):
            thread.start()
            started[number].wait()
            while len(turns._waiting) <= number:
                threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_stopped_clock_stands_still() -> None:
    clock = Clock()
    clock.stop()
    before = clock()
    threading.Event().wait(0.02)
    assert clock() == before
    clock.go_on()
    assert before <= clock() < before + 0.02


def test_a_conversation_ends_where_the_model_ends(dense: Host, talkers: Sides) -> None:
    with pytest.raises(ValueError, match=r"takes \d+ tokens, and this model reads at most 512"):
        dense.stream([user_message("why? " * 600)])
    assert talkers.dense is not None
    reply = talkers.dense.stream([user_message("why? " * 90)], max_new_tokens=4000)
    list(reply)
    assert reply.timings.prompt_tokens + reply.timings.new_tokens == 512


def test_the_cache_is_counted_in_bytes(dense: Host) -> None:
    reply = dense.stream([user_message(QUESTION)], max_new_tokens=4)
    list(reply)
    timings = reply.timings
    assert timings.cache_bytes == (timings.prompt_tokens + timings.new_tokens) * 2 * 2 * 32 * 4


DENSE_COST = Timings(196, 220, 8, 40.0, 100.0, 30.0, 4_000_000)
SPARSE_COST = Timings(49, 73, 8, 20.0, 50.0, 30.0, 1_300_000)


def test_costs_and_differences_in_words() -> None:
    assert cost_in_words(SPARSE_COST) == (
        "49 tokens a photo · encoded in 20 ms · first word after 50 ms · 30 tokens/s · 1.3 MB of cache"
    )
    assert cost_in_words(Timings(0, 5, 0, None, None, None, 900)) == "1 kB of cache"
    told = difference_in_words(DENSE_COST, SPARSE_COST, "red", "blue")
    assert told == (
        "Another answer from 49 instead of 196 tokens a photo. Sparse against dense: encoding 2.0 times faster, "
        "the first word 2.0 times faster, the cache 3.1 times smaller."
    )
    assert difference_in_words(DENSE_COST, SPARSE_COST, "red", "red ").startswith("The same answer")


def test_the_difference_of_two_texts_says_who_says_what() -> None:
    runs = word_difference("a red circle on grass", "a blue circle")
    assert runs == [("a", None), ("red", "dense"), ("blue", "sparse"), ("circle", None), ("on grass", "dense")]


def test_class_names_are_ranked_as_the_towers_vectors_say() -> None:
    ranker, names = Ranker(), ["red circle", "blue square", "green star"]
    image = Image.new("RGB", (224, 224), "gray")
    image.paste((212, 36, 38), (60, 60, 160, 160))
    found = ranker.rank(image, [*names, "", " red circle "])
    assert ranker.tokens == {"dense": 196, "sparse": 49}
    pixels = tower_pixels([image], ranker.sparse.config, torch.empty(0))
    scale = load_file(Path(resolve("clip-tiny")) / "model.safetensors")["logit_scale"].float().exp()
    for side, module in (("dense", open_teacher("clip-tiny").model), ("sparse", Student(ranker.sparse, 49))):
        pooled = F.normalize(module(pixels).pooled[0].detach(), dim=0)
        texts = ranker.text([f"a picture of a {name}" for name in names])
        expected = [names[i] for i in (texts @ pooled).argsort(descending=True).tolist()]
        assert list(found[side]) == expected
        shares = (scale * texts @ pooled).softmax(0).tolist()
        assert found[side] == pytest.approx(dict(zip(names, shares, strict=True)), rel=1e-3)
    with pytest.raises(ValueError, match="at least two"):
        ranker.rank(image, ["red circle"])
    with pytest.raises(ValueError, match=r"no \{c\}"):
        ranker.rank(image, names, "a picture")


def test_each_tower_ranks_photos_of_its_own_size() -> None:
    ranker, names, image = Ranker(), ["red circle", "blue square", "green star"], render_scene(0, 3).image
    before = ranker.rank(image, names)
    ranker.sparse.config.image_size = 112
    after = ranker.rank(image, names)
    assert after["dense"] == before["dense"] and after["sparse"] != before["sparse"]


def test_a_clip_to_rank_with_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="'nobody/nothing' is neither a folder nor a model"):
        Ranker("nobody/nothing")
