import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model

from sfvlm.teachers.inherit import FRESH_TENSORS, TABLES, inherit, is_fresh, take_over
from sfvlm.teachers.open import Teacher, open_teacher
from sfvlm.teachers.student import check_descent, student_config

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def teacher(clip_folder: Path) -> Teacher:
    return open_teacher(clip_folder)


@torch.no_grad()
@pytest.mark.parametrize(("focusing", "coarse_blocks"), [("inherited", 0), ("inherited", 2), ("chosen", 2)])
def test_an_untrained_student_with_the_full_grid_is_the_teacher(
    teacher: Teacher, focusing: Any, coarse_blocks: int
) -> None:
    config = student_config(teacher.config, num_tokens=16, focusing=focusing, coarse_blocks=coarse_blocks)
    student, _ = inherit(teacher, config)
    ours, theirs = student.eval()(PIXELS, output_hidden_states=True), teacher.model(PIXELS)
    torch.testing.assert_close(ours.pooler_output, theirs.pooled, atol=1e-5, rtol=1e-5)
    for mine, reference in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("focusing", ["inherited", "chosen"])
def test_a_small_budget_student_is_the_teacher_when_called_with_the_full_grid(teacher: Teacher, focusing: Any) -> None:
    student, _ = inherit(teacher, student_config(teacher.config, num_tokens=4, focusing=focusing))
    ours = student.eval()(PIXELS, num_tokens=16)
    torch.testing.assert_close(ours.pooler_output, teacher.model(PIXELS).pooled, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fresh_focusing_keeps_the_last_blocks_bit_for_bit(teacher: Teacher) -> None:
    student, report = inherit(teacher, student_config(teacher.config, focusing="fresh", num_tokens=5, truncate=1))
    tokens = torch.randn(1, 6, 64)
    for mine, theirs in zip(student.blocks, teacher.model.blocks[1:], strict=True):
        assert torch.equal(mine(tokens), theirs(tokens))
    dropped = dict(report.dropped)
    assert {"patch.weight", "positions", "pre_norm.weight", "blocks.0.attn.qkv.weight"} <= dropped.keys()
    assert student(PIXELS).pooler_output.isfinite().all()


@torch.no_grad()
def test_a_student_goes_on_from_an_earlier_one_of_the_same_teacher_alone(teacher: Teacher) -> None:
    earlier, _ = inherit(teacher, student_config(teacher.config, num_tokens=4, focusing="chosen"))
    for parameter in (earlier.focusing.saliency.weight, earlier.blocks[0].mlp.fc1.weight):
        parameter.add_(0.1 * torch.randn_like(parameter))
    student, report = inherit(teacher, earlier.config, tuned_blocks=1)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert take_over(student, report, earlier, "runs/earlier").earlier == "runs/earlier"
    assert torch.equal(student.eval()(PIXELS).pooler_output, earlier.eval()(PIXELS).pooler_output)
    assert frozen == [name for name, parameter in student.named_parameters() if not parameter.requires_grad]

    earlier.head.norm.weight.mul_(2)
    with pytest.raises(ValueError, match=r"runs/earlier is not made from .*head\.norm\.weight"):
        take_over(student, report, earlier, "runs/earlier")


@torch.no_grad()
def test_what_an_earlier_run_left_alone_must_be_the_teachers_and_the_rest_counts_as_trained(
    teacher: Teacher, tmp_path: Path
) -> None:
    earlier, before = inherit(
        teacher, student_config(teacher.config, focusing="inherited", num_tokens=4), tuned_blocks=2
    )
    before.save(tmp_path)
    earlier.blocks[1].mlp.fc1.weight.mul_(1.5)
    student, report = inherit(teacher, earlier.config, tuned_blocks=1)
    went_on = take_over(student, report, earlier.bfloat16().float(), str(tmp_path))
    assert report.count(trained=True) < went_on.count(trained=True) == before.count(trained=True)
    assert torch.equal(student.blocks[1].mlp.fc1.weight, earlier.blocks[1].mlp.fc1.weight)

    earlier.blocks[2].mlp.fc1.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"is not made from .*blocks\.2\.mlp\.fc1\.weight is another"):
        take_over(student, report, earlier, str(tmp_path))


def test_an_earlier_student_of_another_grid_is_refused_by_name(teacher: Teacher) -> None:
    other = {"num_tokens": 4, "teacher_grid": 7}
    with pytest.raises(ValueError, match=r"runs/sf49 and the teacher .* differ in teacher_grid: .*--teacher"):
        check_descent(student_config(teacher.config, focusing="inherited", **other), teacher, "runs/sf49")
    check_descent(student_config(teacher.config, focusing="fresh", **other), teacher, "runs/sf49")  # has none of it


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_the_report_counts_every_parameter_once(teacher: Teacher, focusing: str) -> None:
    student, report = inherit(teacher, student_config(teacher.config, focusing=focusing, num_tokens=4), tuned_blocks=1)
    total = sum(parameter.numel() for parameter in student.parameters())
    assert report.count() == total
    assert report.count(trained=True) == sum(p.numel() for p in student.parameters() if p.requires_grad)
    inherited = report.count(inherited=True)
    assert inherited + report.count(inherited=False) == total
    if focusing != "fresh":
        assert not report.dropped


def test_the_report_is_saved_with_the_origin_of_every_tensor(teacher: Teacher, tmp_path: Path) -> None:
    student, report = inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4))
    report.save(tmp_path)
    rows = {row["student"]: row for row in json.loads((tmp_path / "inheritance.json").read_text())["rows"]}
    assert rows.keys() == student.state_dict().keys()
    assert rows["focusing.kernel"]["teacher"] == "patch.weight"
    assert rows["focusing.refiner.fc2.weight"]["teacher"] is None
    assert "inherited, frozen" in report.summary()


def test_only_the_focusing_stage_class_token_and_leading_blocks_are_trained(teacher: Teacher) -> None:
    student, _ = inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4), tuned_blocks=2)
    trained = {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {"focusing", "cls_token", "pre_norm", "blocks"}
    assert all(not parameter.requires_grad for parameter in student.head.parameters())
    assert [next(block.parameters()).requires_grad for block in student.blocks] == [True, True, False, False]


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_the_list_of_fresh_tensors_has_no_dead_entries(focusing: str) -> None:
    names = tiny_model(focusing).state_dict()
    for pattern in FRESH_TENSORS[focusing]:
        assert any(name.startswith(pattern.rstrip("*")) for name in names), pattern
    assert not is_fresh("blocks.0.attn.qkv.weight", focusing)
    assert is_fresh("focusing.saliency.weight" if focusing == "chosen" else "focusing.token_roi.weight", focusing)
    assert not is_fresh("cls_token", focusing)


def test_a_teacher_tensor_in_no_table_is_an_error(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {key: value for key, value in TABLES["inherited"].items() if key != "patch.bias"}
    monkeypatch.setitem(TABLES, "inherited", table)
    with pytest.raises(ValueError, match=r"patch\.bias"):
        inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4))


def test_a_student_tensor_that_nothing_fills_is_an_error(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FRESH_TENSORS, "inherited", ("focusing.token_roi.weight",))
    with pytest.raises(ValueError, match=r"missing: focusing\.memory"):
        inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4))


def test_impossible_students_are_refused_with_the_numbers(teacher: Teacher) -> None:
    with pytest.raises(ValueError, match=r"num_tokens is 48.*try 36 or 49"):
        student_config(teacher.config, focusing="inherited", num_tokens=48)
    with pytest.raises(ValueError, match="4 of the teacher's 4 blocks"):
        student_config(teacher.config, focusing="inherited", truncate=4)
    with pytest.raises(ValueError, match="tuned_blocks is 9, but the student has 4"):
        inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4), tuned_blocks=9)
