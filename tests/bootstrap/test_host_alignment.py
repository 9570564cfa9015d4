import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_hosts import opened
from transformers import AutoProcessor, CLIPVisionConfig, CLIPVisionModel, LlavaImageProcessor

from sfvlm import SparseFormerModel
from sfvlm.bootstrap.alignment import Target, align, anchor_targets, answer_divergence, for_host
from sfvlm.bootstrap.host_texts import LONGEST_ANSWER, Conversations, Interview, prompts_for, read_prompts
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.run import BootstrapOptions, _Run, bootstrap
from sfvlm.bootstrap.targets import TeacherTargets
from sfvlm.commands.bootstrap import BootstrapCommand, bootstrap_command
from sfvlm.encoder.configuration import CLIP_MEAN
from sfvlm.hosts.host import open_host
from sfvlm.hosts.reader import HostReader
from sfvlm.hosts.swap import swap
from sfvlm.photos.batches import Selection, ViewDataset, collate_views
from sfvlm.photos.decode import Photo
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import open_photos
from sfvlm.photos.views import normalize, tower_pixels
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import check_own_tower, open_teacher
from sfvlm.teachers.student import student_config

TURNS = [("Is there a dog in the photo?", "yes"), ("What color is the biggest object?", "a red circle")]
QUICK: dict[str, Any] = dict(
    steps=6, batch_size=4, workers=0, held_back=2, eval_every=0, save_every=100, log_every=1, cpu=True, host_turns=2
)


@pytest.fixture(scope="module")
def llava(hosts: dict[str, Path]) -> Path:
    return hosts["llava"]


def photos_of(folder: Path, count: int = 8) -> Selection:
    photos = open_photos(folder)
    return Selection(photos, range(min(count, len(photos))))


def test_dense_tokens_are_read_as_the_host_itself_reads_them(llava: Path) -> None:
    model, processor = opened(llava)
    reader, teacher = HostReader(model, processor), open_teacher(llava)
    texts = Conversations(processor, [TURNS], seed=0).batch(torch.tensor([0]), torch.tensor([0]))
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        seen = reader.project(reader.select(teacher.model(pixels).hidden_states, 1))
        logits = reader.next_token_logits(seen, texts)
        image = torch.full((16,), processor.image_token_id)
        ids = torch.cat([texts.before, image, texts.after[0]])[None]
        whole = model(input_ids=ids, pixel_values=pixels).logits[0]
    places = len(texts.before) + 16 + texts.place
    torch.testing.assert_close(logits, whole[places - 1], atol=1e-4, rtol=1e-4)


def test_words_that_count_are_the_answers_and_their_ends(llava: Path) -> None:
    _, processor = opened(llava)
    texts = Conversations(processor, [TURNS, TURNS[:1]], seed=0).batch(torch.tensor([0, 1]), torch.tensor([0, 0]))
    tokenizer = processor.tokenizer
    said = [tokenizer.decode(texts.after[row, texts.place[texts.row == row]]) for row in (0, 1)]
    assert sorted(part.strip() for part in said[0].split("</s>")) == ["", "a red circle", "yes"]
    assert said[1].strip() == "yes</s>"
    assert texts.weight.sum().item() == pytest.approx(3)  # one an answer
    assert tokenizer.decode(texts.before) == "USER: "


def test_a_template_may_put_other_space_in_front_of_an_answer_than_it_asks_with(llava: Path) -> None:
    _, processor = opened(llava)
    conversations = Conversations(processor, [TURNS], seed=0)
    # As that of llava-hf/llava-onevision-qwen2-7b-ov-hf does.
    turn = "{{ message['role'] + ': ' }}{% for part in message['content'] %}{{ {body} }}{% endfor %}</s>".replace(
        "{body}", "'<image>' if part['type'] == 'image' else '\\n' + part['text']"
    )
    asks = "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    processor.chat_template = f"{{% for message in messages %}}{turn}{{% endfor %}}{asks}"
    texts = conversations.batch(torch.tensor([0]), torch.tensor([0]))
    said = processor.tokenizer.decode(texts.after[0, texts.place])
    assert sorted(part.strip() for part in said.split("</s>")) == ["", "a red circle", "yes"]


def test_a_template_that_cannot_be_followed_is_refused_before_anything_is_asked(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interview = interview_of(llava)
    interview.processor.chat_template = interview.processor.chat_template.replace("{{ 'ASSISTANT:'", "{{ 'answer:'")
    monkeypatch.setattr(HostReader, "answer", lambda *_: pytest.fail("the host was asked"))
    with pytest.raises(ValueError, match="writes a prompt otherwise once it is answered"):
        interview.answers(photos_of(photo_folder, 2), tmp_path / "answers.jsonl")


def test_turns_change_places_from_epoch_to_epoch(llava: Path) -> None:
    conversations = Conversations(opened(llava)[1], [TURNS], seed=0)
    rows = [conversations.batch(torch.tensor([0]), torch.tensor([epoch])).after.tolist() for epoch in range(8)]
    assert rows == [conversations.batch(torch.tensor([0]), torch.tensor([epoch])).after.tolist() for epoch in range(8)]
    assert len({json.dumps(row) for row in rows}) == 2


@pytest.mark.parametrize(
    ("focusing", "anchor"), [("inherited", "average"), ("inherited", "nearest"), ("chosen", "average")]
)
def test_at_the_full_grid_an_untrained_student_is_told_nothing_new(
    focusing: Any, anchor: Any, llava: Path, photo_folder: Path
) -> None:
    model, processor = opened(llava)
    reader, teacher = HostReader(model, processor), open_teacher(llava)
    config = student_config(teacher.config, num_tokens=16, focusing=focusing, for_host=True)
    student, _ = inherit(teacher, config)
    objective = for_host(Objective(anchor=anchor), -2)
    targets = TeacherTargets(teacher.model, config, objective, None, reader)
    views = ViewDataset(photos_of(photo_folder, 2), 56, training=False, seed=0)
    batch = collate_views([views[0, 0], views[0, 1]])
    pixels = normalize(batch["pixels"], teacher.config.image_mean, teacher.config.image_std)
    target = targets(batch, pixels, Conversations(processor, [TURNS, TURNS], seed=0))
    with torch.no_grad():
        total, parts = align(student(pixels, output_hidden_states=True), target, objective, reader)
        _, fewer = align(student(pixels, 4, output_hidden_states=True), target, objective, reader)
    assert parts.keys() == {"tokens", "projected", "answers"} | ({"saliency"} if focusing == "chosen" else set())
    assert parts["tokens"] + parts["projected"] + parts["answers"] == pytest.approx(0, abs=1e-6)
    assert total == pytest.approx(sum(parts.values()).item())
    assert fewer["projected"] > 1e-3
    assert fewer["answers"] > 1e-6


def test_what_the_words_depend_on_is_the_length_of_their_gradient_times_each_token(llava: Path) -> None:
    model, processor = opened(llava)
    reader = HostReader(model.double(), processor)
    texts = Conversations(processor, [TURNS, TURNS[:1]], seed=0).batch(torch.tensor([0, 1]), torch.tensor([0, 0]))
    seen = torch.randn(2, 3, model.config.text_config.hidden_size, dtype=torch.float64)
    logits, depends = reader.read(seen, texts)
    torch.testing.assert_close(logits, reader.next_token_logits(seen, texts))
    assert not logits.requires_grad and not depends.requires_grad

    def said(tokens: torch.Tensor) -> torch.Tensor:
        shares = reader.next_token_logits(tokens, texts).log_softmax(-1)
        return (shares[range(len(shares)), texts.after[texts.row, texts.place]] * texts.weight).sum()

    steps = []
    for feature in range(seen.shape[2]):  # what a hundredth more or less of one feature of a token changes
        more, less = seen.clone(), seen.clone()
        more[1, 2, feature] *= 1 + 1e-2
        less[1, 2, feature] *= 1 - 1e-2
        steps.append((said(more) - said(less)) / 2e-2)
    torch.testing.assert_close(depends[1, 2].double(), torch.stack(steps).norm(), rtol=2e-3, atol=1e-6)


def test_a_student_guesses_what_the_words_depend_on_or_the_attention(llava: Path, photo_folder: Path) -> None:
    model, processor = opened(llava)
    reader, teacher = HostReader(model, processor), open_teacher(llava)
    config = student_config(teacher.config, num_tokens=16, focusing="chosen", for_host=True)
    views = ViewDataset(photos_of(photo_folder, 2), 56, training=False, seed=0)
    batch = collate_views([views[0, 0], views[0, 1]])
    pixels = normalize(batch["pixels"], teacher.config.image_mean, teacher.config.image_std)
    conversations = Conversations(processor, [TURNS, TURNS], seed=0)
    found = {}
    for salient in ("words", "attention"):
        objective = for_host(Objective(salient=salient), -2)
        target = TeacherTargets(teacher.model, config, objective, None, reader)(batch, pixels, conversations)
        assert target.saliency is not None and target.logits is not None
        found[salient] = target.saliency
    assert not torch.allclose(found["words"], found["attention"], atol=1e-4)
    seen = reader.project(teacher.model(pixels).hidden_states[-2][:, 1:])
    texts = conversations.batch(batch["index"], batch["view"])
    torch.testing.assert_close(found["words"], torch.nn.functional.normalize(reader.read(seen, texts)[1], p=1, dim=1))


def test_divergence_is_that_of_torch_averaged_over_answers(llava: Path) -> None:
    texts = Conversations(opened(llava)[1], [TURNS], seed=0).batch(torch.tensor([0]), torch.tensor([0]))
    ours, theirs = torch.randn(2, len(texts.row), 11)
    each = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True)
    longer = (texts.weight < texts.weight.max()).nonzero()[:, 0]
    shorter = (texts.weight == texts.weight.max()).nonzero()[:, 0]
    expected = (each.sum(-1)[longer].mean() + each.sum(-1)[shorter].mean()) / 2
    found = answer_divergence(ours, Target(ours, texts=texts, logits=theirs))
    torch.testing.assert_close(found, expected)


def test_the_nearest_anchor_is_a_token_of_the_teacher() -> None:
    tokens = torch.arange(36.0)[None, :, None]  # 6 x 6
    assert anchor_targets(tokens, 9, "nearest")[0, :, 0].tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]
    assert anchor_targets(tokens, 9)[0, 0, 0].item() == (0 + 1 + 6 + 7) / 4


def interview_of(folder: Path, **changes: Any) -> Interview:
    host, teacher = open_host(folder, device="cpu"), open_teacher(folder)
    reader = HostReader(host.model, host.processor)
    fields: dict[str, Any] = dict(turns=2, seed=0) | changes
    return Interview(reader, host.processor, host.fingerprint, teacher.model, **fields)


def test_answers_are_those_of_the_whole_host(llava: Path, tmp_path: Path) -> None:
    for index in range(4):  # of the host's own size: no resizing whose rounding could tip a random model
        render_scene(0, index, 56).image.save(tmp_path / f"{index}.png")
    photos = photos_of(tmp_path, 4)
    found = interview_of(llava, turns=3).answers(photos, tmp_path / "answers.jsonl")
    host = open_host(llava, device="cpu")
    images = [photos[index].image for index, turns in enumerate(found) for _ in turns]
    asked = [prompt for turns in found for prompt, _ in turns]
    assert len(asked) == 12
    expected = host.answer(images, asked, max_new_tokens=LONGEST_ANSWER)
    assert [answer for turns in found for _, answer in turns] == expected


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_a_host_is_asked_about_a_photo_as_its_own_processor_shows_it(kind: str, hosts: dict[str, Path]) -> None:
    interview, image = interview_of(hosts[kind]), render_scene(0, 1, 200).image.resize((300, 100))
    own = interview.processor.image_processor(image, return_tensors="pt")["pixel_values"].reshape(-1, 3, 56, 56)[0]
    seen = tower_pixels([interview.shown(image)], interview.dense.config, own)[0]
    assert (seen - own).abs().mean() < 1e-3


def test_answers_continue_where_they_stopped(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    photos, path = photos_of(photo_folder, 4), tmp_path / "answers.jsonl"
    whole = interview_of(llava).answers(photos, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # cut short in the third photo
    with pytest.MonkeyPatch.context() as patch:
        asked: list[int] = []
        original = Interview._ask
        patch.setattr(Interview, "_ask", lambda self, of, some: asked.extend(some) or original(self, of, some))
        assert interview_of(llava).answers(photos, path) == whole
    assert asked == [2, 3]
    with pytest.raises(ValueError, match="turns: 2 then, 3 now"):
        interview_of(llava, turns=3).answers(photos, path)


def test_a_run_that_breaks_off_at_the_first_line_leaves_no_file_of_others(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, text: str, encoding: str | None = None) -> None:
        path.open("w", encoding=encoding).write(text[:9])
        raise KeyboardInterrupt

    interview, photos, path = interview_of(llava), photos_of(photo_folder, 1), tmp_path / "answers.jsonl"
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        interview.answers(photos, path)
    monkeypatch.undo()
    assert len(interview.answers(photos, path)[0]) == 2


def test_answers_with_other_settings_are_another_hosts(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    photos, path = photos_of(photo_folder, 2), tmp_path / "answers.jsonl"
    interview = interview_of(llava)
    interview.answers(photos, path)
    interview.processor.chat_template += " "  # the weights are the same
    with pytest.raises(ValueError, match="holds other answers \\(settings: "):
        interview.answers(photos, path)
    head = path.read_text().splitlines(keepends=True)[0]
    for line in ("no answer", '{"key": 1}'):
        path.write_text(f"{head}{line}\n")
        with pytest.raises(ValueError, match=r"answers\.jsonl is damaged .*: remove it, or give another folder"):
            interview.answers(photos, path)


def test_answers_about_other_photos_of_the_same_names_are_refused(llava: Path, tmp_path: Path) -> None:
    folders = [tmp_path / version / "val" for version in ("v1", "v2")]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for index in range(3):
            render_scene(seed, index, 56).image.save(folder / f"{index}.png")
    interview, path = interview_of(llava), tmp_path / "answers.jsonl"
    interview.answers(photos_of(folders[0]), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"about other photos, val/0\.png among them: remove it"):
        interview.answers(photos_of(folders[1]), path)
    assert path.read_bytes() == before


def test_a_repaired_photo_is_asked_about_and_a_broken_one_not_again(llava: Path, tmp_path: Path) -> None:
    folder, path = tmp_path / "photos", tmp_path / "answers.jsonl"
    folder.mkdir()
    for index in range(3):
        render_scene(0, index, 56).image.save(folder / f"{index}.png")
    (folder / "1.png").write_bytes(b"no photo")
    photos, interview = photos_of(folder), interview_of(llava, at_once=1)
    first = interview.answers(photos, path)
    assert [len(turns) for turns in first] == [2, 0, 2]
    before = path.read_bytes()
    assert interview.answers(photos, path) == first and path.read_bytes() == before
    render_scene(0, 1, 56).image.save(folder / "1.png")
    whole = interview.answers(photos, path)
    assert whole == interview.answers(photos, tmp_path / "anew.jsonl")
    assert path.read_bytes().startswith(before) and interview.answers(photos, path) == whole


def test_photos_of_one_name_have_answers_of_their_own(llava: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name / "scenes" for name in "ab"]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        render_scene(0, index, 56).image.save(folder / "0.png")
    photos = Selection(open_photos(folders), range(2))
    interview, path = interview_of(llava, turns=3), tmp_path / "answers.jsonl"
    found = interview.answers(photos, path)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]] == ["scenes/0.png", "scenes/0.png#2"]
    each = [Selection(open_photos(folder), range(1)) for folder in folders]
    assert found == [interview.answers(one, tmp_path / f"{number}.jsonl")[0] for number, one in enumerate(each)]
    assert found == interview.answers(photos, path)


def test_photos_that_bring_prompts_are_asked_those_without_their_answers() -> None:
    meta = {"questions": [{"question": "What color is the star?", "answer": "SECRET"}], "qa": [["how many", "SECRET"]]}
    asked = prompts_for(Photo(None, "a", None, (), meta), 3, random.Random(0))  # type: ignore[arg-type]
    assert len(asked) == 3
    assert any("star" in words for words in asked) and any("How many" in w or "how many" in w for w in asked)
    assert "SECRET" not in str(asked)
    assert prompts_for(Photo(None, "a", None, (), {}), 3, random.Random(0), ("Only this?",)) == ["Only this?"]  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["questions", "qa"])
@pytest.mark.parametrize("value", ["why?", None, {"question": "why?"}, ["why?", None, [], [None], {"question": 3}]])
def test_other_peoples_fields_of_these_names_are_no_prompts(field: str, value: Any) -> None:
    asked = prompts_for(Photo(None, "a", None, (), {field: value}), 3, random.Random(0))  # type: ignore[arg-type]
    assert asked == prompts_for(Photo(None, "a", None, (), {}), 3, random.Random(0))  # type: ignore[arg-type]


def run(host: Path, photos: Path, out: Path, **changes: Any) -> dict[str, float]:
    teacher = open_teacher(host)
    student, report = inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4), 1)
    options = BootstrapOptions(**(QUICK | {"objective": for_host(Objective(), -2)} | changes))
    return bootstrap(teacher, student, report, open_photos(photos), out, options, host=open_host(host, device="cpu"))


def test_a_host_is_kept_and_its_words_come_nearer(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in opened(llava)[0].state_dict().items()}
    objective = Objective(pooled=0.0, projected=1.0, answers=1.0)
    quick = dict(steps=24, batch_size=8, learning_rate=3e-3, budgets=(4, 9), warmup=0.1, objective=objective)
    result = run(llava, photo_folder, tmp_path / "out", **quick)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["answers"] for line in lines if "answers" in line]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert 0 <= result["answer_agreement"] <= 1
    after = opened(llava)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)

    tower = SparseFormerModel.from_pretrained(tmp_path / "out")
    assert tower.config.aligned_layers == [-2]
    model, processor = opened(llava)
    swap(model, processor, tower)
    model, processor = opened(llava)
    model.config.vision_feature_layer = -1
    with pytest.raises(ValueError, match=r"reads layer -1 .* aligned at layer -2"):
        swap(model, processor, tower)


def test_the_command_aligns_with_a_host_by_default_objectives(
    llava: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tower"
    training = BootstrapOptions(**(QUICK | dict(steps=2, ema_decay=0.9, objective=Objective(anchor="nearest"))))
    command = BootstrapCommand(host=str(llava), photos=[str(photo_folder)], out=out, num_tokens=4, training=training)
    bootstrap_command(command)
    facts = json.loads((out / "bootstrap.json").read_text())
    assert facts["teacher"] == facts["host"]["source"] == str(llava)
    objective = facts["options"]["objective"]
    assert [objective[name] for name in ("pooled", "projected", "answers")] == [0, 1, 1]
    assert objective["anchor"] == "nearest"
    assert SparseFormerModel.from_pretrained(out).config.aligned_layers == [-2]  # of the averaged weights too
    assert f"swap_llava_tower.py --host {llava} --tower {out}" in capsys.readouterr().out


def test_a_teacher_that_is_not_the_hosts_own_tower_is_refused(
    llava: Path, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    own, finetuned = tmp_path / "own", tmp_path / "finetuned"
    tower = CLIPVisionModel(CLIPVisionConfig(**opened(llava)[0].config.vision_config.to_dict()))
    tower.load_state_dict(opened(llava)[0].model.vision_tower.state_dict())
    tower.half().save_pretrained(own)
    with torch.no_grad():
        next(each for name, each in tower.named_parameters() if "layers.1.mlp.fc2.weight" in name).mul_(1.02)
    tower.save_pretrained(finetuned)
    check_own_tower(open_teacher(own), open_teacher(llava))
    for teacher, name in ((finetuned, r"blocks\.1\.mlp\.fc2\.weight"), (clip_folder, "num_hidden_layers")):
        command = BootstrapCommand(
            teacher=str(teacher), host=str(llava), photos=[str(photo_folder)], out=tmp_path / "out", num_tokens=4
        )
        with pytest.raises(ValueError, match=rf"{teacher} is not the tower of the host {llava}: its {name} is another"):
            bootstrap_command(command)


def test_the_tower_of_a_host_that_pads_learns_from_padded_photos(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = shutil.copytree(llava, tmp_path / "host")
    own = AutoProcessor.from_pretrained(host)
    own.image_processor = LlavaImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True
    )
    own.save_pretrained(host)
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.new("RGB", (90, 30), (0, 250 - index, 0)).save(tmp_path / "photos" / f"{index}.png")
    seen: list[torch.Tensor] = []
    pixels = _Run._pixels
    monkeypatch.setattr(_Run, "_pixels", lambda self, batch: seen.append(batch["pixels"]) or pixels(self, batch))
    run(host, tmp_path / "photos", tmp_path / "out", steps=1, crop_scale=(1.0, 1.0))
    colour = [int(255 * mean) for mean in CLIP_MEAN]
    assert len(seen) == 2  # a step, and the evaluation
    for views in seen:
        grey = (views == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(dim=1).float().mean(dim=(1, 2))
        assert grey.min() > 0.4 and grey.max() < 0.75  # two thirds of the square but for what resizing blurs


def test_a_host_and_an_evaluation_are_given_no_more_photos_at_once_than_a_step(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    select = HostReader.select
    monkeypatch.setattr(
        HostReader, "select", lambda self, states, extra: sizes.append(len(states[0])) or select(self, states, extra)
    )
    run(llava, photo_folder, tmp_path / "out", steps=1, batch_size=2, host_turns=1, held_back=5)
    assert max(sizes) == 2


def test_what_needs_a_host_says_so(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    teacher = open_teacher(llava)
    student, report = inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4), 1)
    options = BootstrapOptions(**(QUICK | {"objective": Objective(answers=1.0)}))
    with pytest.raises(ValueError, match="need a host: give --host"):
        bootstrap(teacher, student, report, open_photos(photo_folder), tmp_path / "out", options)
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"prompts\.txt is empty"):
        read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9?")
    with pytest.raises(ValueError, match=r"prompts\.txt is no UTF-8 text"):
        read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("Why?\n", encoding="utf-8-sig")  # as editors on Windows write it
    assert read_prompts(tmp_path / "prompts.txt") == ("Why?",)
