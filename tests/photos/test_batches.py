"""Training batches: views by epoch and photo, samplers, and the log of skipped photos."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from tiny_photos import noise
from torch.utils.data import DataLoader

from sfvlm.photos.batches import EpochSampler, SkipLog, ViewDataset, collate_views, shard_indices
from sfvlm.photos.sources import open_photos


def view_dataset(tmp_path: Path, count: int = 12, bad: tuple[int, ...] = (), **options):
    root = tmp_path / "photos"
    root.mkdir(exist_ok=True)
    for index in range(count):
        noise(seed=index).save(root / f"{index:02d}.png")
    for index in bad:
        (root / f"{index:02d}.png").write_bytes(b"")
    return ViewDataset(open_photos(root), 16, **{"training": True, "seed": 5, **options})


def test_the_bits_do_not_depend_on_the_workers(tmp_path):
    dataset = view_dataset(tmp_path, bad=(3,))

    def batches(workers: int):
        loader = DataLoader(
            dataset,
            batch_sampler=EpochSampler(12, 5, seed=1),
            num_workers=workers,
            collate_fn=collate_views,
        )
        return list(itertools.islice(loader, 4))

    for alone, together in zip(batches(0), batches(2), strict=True):
        assert alone["pixels"].shape == (5, 3, 16, 16) and alone["pixels"].dtype == torch.uint8
        assert torch.equal(alone["pixels"], together["pixels"])
        assert torch.equal(alone["index"], together["index"])
        assert torch.equal(alone["view"], together["view"])
        assert alone["skipped"] == together["skipped"]


def test_the_augmentation_follows_from_seed_epoch_and_index(tmp_path):
    dataset = view_dataset(tmp_path)
    view = dataset[2, 3]["pixels"]
    assert torch.equal(view, dataset[2, 3]["pixels"])
    assert not torch.equal(view, dataset[3, 3]["pixels"])
    assert not torch.equal(view, view_dataset(tmp_path, seed=6)[2, 3]["pixels"])
    plain = view_dataset(tmp_path, training=False)
    assert torch.equal(plain[0, 3]["pixels"], plain[1, 3]["pixels"])


def test_views_repeat_every_num_views_epochs(tmp_path):
    cycled, endless = view_dataset(tmp_path, num_views=3), view_dataset(tmp_path)
    for epoch in range(7):
        assert cycled[epoch, 4]["view"] == epoch % 3 and endless[epoch, 4]["view"] == epoch
        assert torch.equal(cycled[epoch, 4]["pixels"], endless[epoch % 3, 4]["pixels"])
    assert not torch.equal(endless[0, 4]["pixels"], endless[3, 4]["pixels"])
    batch = collate_views([cycled[epoch, 4] for epoch in range(4)])
    assert batch["view"].tolist() == [0, 1, 2, 0] and batch["view"].dtype == torch.int64
    with pytest.raises(ValueError, match="num_views is 0"):
        view_dataset(tmp_path, num_views=0)


def test_index_and_view_name_the_pixels_of_a_stand_in_too(tmp_path):
    dataset = view_dataset(tmp_path, count=4, bad=(1,), num_views=2)
    stand_in, own_turn = dataset[3, 1], dataset[5, 2]
    assert (stand_in["index"], stand_in["view"]) == (own_turn["index"], own_turn["view"]) == (2, 1)
    assert torch.equal(stand_in["pixels"], own_turn["pixels"])


def test_an_unreadable_photo_is_replaced_by_the_next_and_reported(tmp_path):
    dataset = view_dataset(tmp_path, count=4, bad=(0, 3))
    view = dataset[0, 3]
    assert view["index"] == 1
    assert [skip["key"] for skip in view["skipped"]] == ["photos/03.png", "photos/00.png"]
    batch = collate_views([dataset[0, index] for index in range(4)])
    assert batch["index"].tolist() == [1, 1, 2, 1]
    assert len(batch["skipped"]) == 3 and batch["skipped"][0]["reason"] == "the file is empty"


def test_a_dataset_without_one_readable_photo_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"None of the 2 photos is readable; .*is empty"):
        view_dataset(tmp_path, count=2, bad=(0, 1))[0, 0]


def steps(sampler: EpochSampler, count: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(sampler, count))


def test_every_photo_comes_once_an_epoch_and_none_is_dropped():
    seen = list(itertools.chain(*steps(EpochSampler(10, 4, seed=0), 15)))
    assert sorted(seen) == [(epoch, index) for epoch in range(6) for index in range(10)]
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    orders = {tuple(index for at, index in seen if at == epoch) for epoch in range(6)}
    assert len(orders) == 6


def test_a_resumed_sampler_continues_exactly():
    whole = steps(EpochSampler(10, 4, seed=3), 30)
    for start in (1, 2, 17):
        assert steps(EpochSampler(10, 4, seed=3, start_step=start), 5) == whole[start : start + 5]
    assert steps(EpochSampler(10, 4, seed=4), 30) != whole


def test_two_ranks_share_the_batches_of_one_process():
    alone = steps(EpochSampler(11, 6, seed=0), 9)
    ranks = [steps(EpochSampler(11, 3, seed=0, rank=rank, world_size=2), 9) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone


def test_a_batch_larger_than_the_data_wraps_over_epochs():
    batch = steps(EpochSampler(3, 8, seed=0), 1)[0]
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="length=0"):
        EpochSampler(0, 8, seed=0)


def test_evaluation_shards_cover_everything_once():
    shards = [shard_indices(10, rank, 4) for rank in range(4)]
    assert sorted(itertools.chain(*shards)) == list(range(10))
    assert list(shards[1]) == [1, 5, 9]


def test_the_skip_log_writes_each_photo_once_also_after_a_resume(tmp_path):
    path = tmp_path / "skipped.jsonl"
    log = SkipLog(path)
    assert log.count == 0 and not path.exists()
    assert log.add([{"key": "a", "reason": "x"}, {"key": "a", "reason": "x"}]) == 1
    with path.open("a") as file:
        file.write('{"key": "b", "rea')  # an interrupted run
    log = SkipLog(path)
    assert log.add([{"key": "a", "reason": "x"}, {"key": "ü", "reason": "y"}]) == 1
    assert log.count == 2 == SkipLog(path).count
    assert json.loads(path.read_text().splitlines()[-1]) == {"key": "ü", "reason": "y"}
