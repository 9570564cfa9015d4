"""What several benchmarks say together: shares of the first model's score, their mean, and who is ahead."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfvlm.cli import main
from sfvlm.util.statistics import paired_comparison
from sfvlm.vqa.answers import Run
from sfvlm.vqa.metrics import Score
from sfvlm.vqa.retained import BenchmarkScores, read_scores, retained, write_scores


def _scores(benchmark: str, seed: int, count: int = 200, strata: Sequence[int] = ()) -> BenchmarkScores:
    rng = np.random.default_rng(seed)
    dense, ours, cheap = (rng.random(count) < share for share in (0.8, 0.75, 0.5))
    models = {"dense": dense.astype(float), "ours": ours.astype(float), "cheap": cheap.astype(float)}
    return BenchmarkScores(
        benchmark, tuple(range(count)), tuple(strata), {name: list(each) for name, each in models.items()}
    )


def test_one_benchmark_is_the_paired_comparison() -> None:
    scores = _scores("scenes", 0)
    dense, ours, cheap = retained([scores])
    expected = paired_comparison(scores.models["dense"], scores.models["ours"], scores.photos).retained
    assert ours.shares == (expected,) and ours.mean == expected and ours.lead is None
    assert dense.mean.value == dense.mean.low == dense.mean.high == 1
    assert cheap.lead is not None and cheap.lead.low > 0  # 0.75 against 0.5, on the same questions
    assert cheap.lead.value == pytest.approx(ours.mean.value - cheap.mean.value)


def test_the_mean_is_over_benchmarks_and_its_interval_is_narrower_than_theirs() -> None:
    files = [_scores(f"benchmark-{seed}", seed) for seed in range(4)]
    ours = retained(files)[1]
    assert ours.mean.value == pytest.approx(np.mean([share.value for share in ours.shares]))
    widths = [share.high - share.low for share in ours.shares]
    assert ours.mean.high - ours.mean.low == pytest.approx(np.mean(widths) / 2, rel=0.2)  # four independent ones


def test_a_model_equal_to_another_is_ahead_by_nothing_in_every_drawing() -> None:
    scores = _scores("scenes", 3)
    twin = BenchmarkScores("scenes", scores.photos, (), {**scores.models, "twin": scores.models["ours"]})
    lead = retained([twin, _with_twin(_scores("captions", 4))])[-1].lead
    assert lead is not None and (lead.value, lead.low, lead.high) == (0, 0, 0)


def _with_twin(scores: BenchmarkScores) -> BenchmarkScores:
    return BenchmarkScores(
        scores.benchmark, scores.photos, scores.strata, {**scores.models, "twin": scores.models["ours"]}
    )


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    units = {"dense": (1.0, 0.5, 1.0), "ours": (0.25, 0.0, 1.0)}
    scores = {
        name: Score("accuracy", {"accuracy": 0.0}, each, ("a", "b", "a"), (0, 1, 0)) for name, each in units.items()
    }
    results = tmp_path / "vqa.json"
    results.write_text("{}")
    write_scores(results, "mme", scores, {"dense": Run("dense", "abc", 16, "def"), "ours": None})
    found = read_scores(results)
    assert found.fingerprints == {"dense": {"fingerprint": "abc", "settings_fingerprint": "def"}}
    assert (found.benchmark, found.photos, found.strata) == ("mme", (0, 1, 0), (0, 1, 0))
    assert {name: tuple(each) for name, each in found.models.items()} == units and list(found.models) == list(units)


def test_files_of_an_unknown_model_are_read_still(tmp_path: Path) -> None:
    (path,) = _written(tmp_path, scenes={"dense": (1.0,), "ours": (1.0,)})
    scores = tmp_path / "scenes.scores.json"
    content = json.loads(scores.read_text())
    del content["fingerprints"]
    scores.write_text(json.dumps(content))
    assert read_scores(Path(path)).fingerprints == {}


def _written(folder: Path, **files: dict[str, tuple[float, ...]]) -> list[str]:
    paths = []
    for benchmark, models in files.items():
        path = folder / f"{benchmark}.json"
        path.write_text("{}")
        photos = tuple(range(len(next(iter(models.values())))))
        scores = {name: Score("accuracy", {}, each, photos) for name, each in models.items()}
        write_scores(path, benchmark, scores, dict.fromkeys(models))
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("kind", ["fingerprint", "settings_fingerprint"])
def test_models_of_one_name_must_be_one_model(kind: str) -> None:
    files = [
        replace(_scores(name, 0), fingerprints={"ours": {"fingerprint": "a", "settings_fingerprint": "b", kind: value}})
        for name, value in (("scenes", "1234"), ("captions", "5678"))
    ]
    with pytest.raises(ValueError, match=f"ours is not .* its {kind} is 1234 in scenes, 5678 in captions"):
        retained(files)
    for unknown in ({}, {"ours": {"fingerprint": "", "settings_fingerprint": ""}}):
        assert len(retained([files[0], replace(files[1], fingerprints=unknown)])) == 3


def test_leads_are_told_a_benchmark_too() -> None:
    files = [_scores("scenes", 0), _scores("captions", 1)]
    _, ours, cheap = retained(files)
    assert ours.leads == ()
    for place, lead in enumerate(cheap.leads):
        assert lead.value == pytest.approx(ours.shares[place].value - cheap.shares[place].value)
    assert cheap.leads[0] == retained(files[:1])[2].lead
    assert cheap.lead is not None and cheap.lead.value == pytest.approx(np.mean([lead.value for lead in cheap.leads]))


def test_the_command_prints_and_writes_what_is_retained(tmp_path: Path, capsys: Any) -> None:
    scenes = {"dense": (1.0,) * 8, "ours": (1.0,) * 6 + (0.0,) * 2, "cheap": (1.0,) * 4 + (0.0,) * 4}
    captions = {"dense": (0.5,) * 8, "ours": (0.5,) * 8, "cheap": (0.25,) * 8, "other": (0.0,) * 8}
    files, out = _written(tmp_path, scenes=scenes, captions=captions), tmp_path / "retained.json"
    main(["retained", *files, "--out", str(out)])
    head, *rows, _, _, left_out, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["model", "scenes", "captions", "mean"] and head.endswith("ours is ahead by")
    assert [row.split()[0] for row in rows] == ["dense", "ours", "cheap"]
    assert left_out == "Left out: other, which is not in the results of scenes."
    content = json.loads(out.read_text())
    assert [each["mean"]["value"] for each in content["retained"]] == [1.0, 0.875, 0.5]
    assert content["retained"][2]["lead"]["value"] == 0.375 and content["of"] == "ours"
    assert [lead["value"] for lead in content["retained"][2]["leads"]] == [0.25, 0.5]


def test_shares_of_yes_or_no_are_said_to_have_a_chance(tmp_path: Path, capsys: Any) -> None:
    both = {"dense": (1.0,) * 4, "ours": (1.0,) * 4}
    files = _written(tmp_path, scenes=both, **{"pope-like": both})
    main(["retained", *files])
    assert "The share of pope-like is of accuracy, of which chance is half." in capsys.readouterr().out
    main(["retained", files[0]])
    assert "chance" not in capsys.readouterr().out


def test_a_pattern_meets_the_scores_beside_the_results_too(tmp_path: Path, capsys: Any) -> None:
    both = {"dense": (1.0,) * 4, "ours": (1.0,) * 4}
    files = _written(tmp_path, scenes=both, captions=both)
    main(["retained", *files])
    expected = capsys.readouterr().out
    every = sorted(map(str, tmp_path.glob("*.json")))
    assert len(every) == 4
    main(["retained", *reversed(every)])
    assert sorted(capsys.readouterr().out.split()) == sorted(expected.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is nothing to join"),
        (["nowhere.json"], "is no results file with scores beside it"),
        (["scenes.json", "--of", "theirs"], "'theirs' is not in all results; there are dense, ours."),
        (["scenes.json", "zero.json"], "dense scores next to nothing on zero"),
        (["scenes.json", "alone.json"], "have 1 models in common"),
        (["scenes.json", "other.json"], "the first of each is dense or ours"),
        (["scenes.json", "damaged.json"], "is damaged"),
        (["scenes.json", "scenes.json"], "The results of scenes are given 2 times"),
        (["scenes.json", "--out", "table.txt"], "must end in .json"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ones, zeros = (1.0,) * 4, (0.0,) * 4
    both = {"dense": ones, "ours": ones}
    _written(tmp_path, scenes=both, zero={"dense": zeros, "ours": ones}, alone={"dense": ones}, damaged=both)
    _written(tmp_path, other={"ours": ones, "dense": ones})
    (tmp_path / "damaged.scores.json").write_text('{"benchmark": "x"')
    with pytest.raises(SystemExit) as stopped:
        main(["retained", *arguments])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "table.txt").exists()
