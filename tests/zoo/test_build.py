"""How the shipped models are made: the recipes in `scripts/zoo`, on a handful of photos."""

import io
import json
import random
import re
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import randomize
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, LlavaForConditionalGeneration

from sfvlm.photos.batches import Selection
from sfvlm.photos.decode import Photo
from sfvlm.photos.scene_texts import SceneObject, scene_questions
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import named, open_photos
from sfvlm.teachers.open import open_teacher
from sfvlm.vqa.questions import SHORT_ANSWER
from sfvlm.zoo.names import WEIGHTS

SCRIPTS = str(Path(__file__).parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
from zoo.clip import THINGS, ClipLearner, ClipOptions, Features, build_clip, patch_labels  # noqa: E402
from zoo.clip_model import CONSTANT, new_clip  # noqa: E402
from zoo.clip_model import train_tokenizer as train_clip_tokenizer  # noqa: E402
from zoo.held_out import HeldOutOptions, write_held_out  # noqa: E402
from zoo.llava import (  # noqa: E402
    LAID_OUT,
    Conversations,
    Lesson,
    LlavaLearner,
    LlavaOptions,
    _collate,
    build_llava,
    photo_tokens,
)
from zoo.llava_model import new_llava, new_processor, train_tokenizer  # noqa: E402
from zoo.loop import Stage, begin, train  # noqa: E402
from zoo.patch_words import NO_WORD, object_words, photo_word_loss, word_loss  # noqa: E402
from zoo.questions import (  # noqa: E402
    CAPTION_PROMPTS,
    existence_turns,
    photo_turns,
    scene_facts,
    shares_shown,
    telling_words,
)
from zoo.ship import ShipOptions, name_without_folders, ship  # noqa: E402
from zoo.sources import IMAGENETTE, PHOTOS, TALKED_OF, Data, center_views  # noqa: E402

sys.path.remove(SCRIPTS)
LESSON = Lesson(Stage("both", 1, {}), [], 1, lambda photo, generator: [])
WORDS = ["a red circle on a dotted background", "USER: What color is it? ASSISTANT: red", "two dogs run over grass ."]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """The folder of training data, a few noisy photos a shard, and a vision transformer of random weights."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    said = {
        "flickr8k-train-000": {"captions": ["A dog runs over the grass .", "Two dogs play ."]},
        "coco-boxes-000": {"size": [64, 64], "boxes": [["dog", 1, 2, 30, 30]], "captions": ["A dog."]},
        "daquar-train-000": {"qa": [["what is on the floor in image12", "garbage_bin"]]},
        "caltech-photos-000": None,
    }
    for name in ("flickr8k-train-001", "flickr8k-train-002"):
        said[name] = said["flickr8k-train-000"]
    for name, meta in [*said.items(), ("imagenette-train-000", 3)]:
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for number in range(6):
                data = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(data, "JPEG")
                members = {"jpg": data.getvalue()}
                if meta is not None:
                    members["cls" if meta == 3 else "json"] = json.dumps(meta).encode()
                for suffix, content in members.items():
                    entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), folder / "vit_tiny_patch16_224.safetensors")
    return folder


@pytest.mark.parametrize(("constant", "cosine"), [(CONSTANT, 0.97), (60.0, 0.999)])
def test_the_new_image_tower_says_what_its_transformer_says_the_nearer_the_larger_its_constant(
    constant: float, cosine: float, shards, monkeypatch
):
    monkeypatch.setattr("zoo.clip_model.CONSTANT", constant)
    teacher = open_teacher(f"timm:vit_tiny_patch16_224:{shards / 'vit_tiny_patch16_224.safetensors'}").model
    randomize(teacher, scale=0.02)
    tokenizer = train_clip_tokenizer(WORDS, 600)
    seen, unseen = torch.rand(2, 6, 3, 224, 224)
    tower = new_clip(teacher, tokenizer, torch.zeros(192), seen).vision_model.eval()
    with torch.no_grad():
        expected = teacher.head.norm(teacher(unseen).hidden_states[-1][:, 0])
        assert torch.nn.functional.cosine_similarity(tower(unseen).pooler_output, expected).min() > cosine


def test_the_clip_tokenizer_reads_back_as_transformers_own(tmp_path):
    tokenizer = train_clip_tokenizer(WORDS, 600)
    tokenizer.save_pretrained(tmp_path)
    text = "Zürich's RED circle, 42 dogs!"
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_patches_are_named_after_the_thing_that_covers_them():
    scene = render_scene(3, 5)
    things, colors = patch_labels(list(scene.to_meta()["objects"])).unflatten(1, (14, 14))
    main = scene.objects[0]
    column, row = (int(14 * place) for place in main.center)
    assert things[row, column] == 1 + THINGS.index(main.shape)
    assert (things > 0).float().mean() < 0.6 and ((things > 0) == (colors > 0)).all()


def test_no_held_out_photo_is_trained_on(shards, tmp_path):
    data = Data(shards)
    for name in ("coco-boxes-000.tar", "daquar-train-000.tar"):
        held_out = data.held_out_photos(name)
        training = data.training_photos((name,))
        names = [{photos.key(index) for index in range(len(photos))} for photos in (held_out, training)]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 6 and names[1]
    listed = tmp_path / "held-out.txt"
    write_held_out(HeldOutOptions(shards, listed))
    photos = open_photos([shards / "coco-boxes-000.tar", shards / "daquar-train-000.tar"])
    everything = data.training_photos(("coco-boxes-000.tar", "daquar-train-000.tar"))
    assert named(photos, listed) == set(range(len(photos))) - set(everything.indices.tolist())
    with pytest.raises(ValueError, match=r"flickr.*|--data is the folder"):
        Data(shards / "nowhere").path("flickr8k-train-000.tar")


def test_each_thing_is_said_to_be_there_as_often_as_not_however_common_it_is():
    generator = random.Random(0)
    common = {"dog": 0.8, "cup": 0.3, "kite": 0.1}
    said = Counter()
    for _ in range(4000):
        present = sorted(name for name, share in common.items() if generator.random() < share)
        for question, answer in existence_turns(present, common, generator, set()):
            name = re.fullmatch(r"Is there an? (.+) in the \w+\?", question)[1]
            assert (answer == "yes") == (name in present)
            said[name, answer] += 1
    shares = {name: said[name, "yes"] / (said[name, "yes"] + said[name, "no"]) for name in common}
    assert all(0.45 < share < 0.55 for share in shares.values()), shares


def test_things_that_captions_name_otherwise_are_not_said_to_be_absent():
    generator, shown = random.Random(0), {"cup": 0.5, "dog": 0.5, "kite": 0.5}
    turns = [turn for _ in range(20) for turn in existence_turns(["cup"], shown, generator, {"dog"})]
    assert {question.split()[3] for question, answer in turns if answer == "no"} == {"kite"}


def test_the_words_of_a_photo_are_those_that_name_something():
    said = Photo(None, "x", None, ("A dog runs over the grass .",), {"qa": [["what is there", "garbage_bin"]]})
    assert telling_words(said, ()) == ["bin", "dog", "garbage", "grass", "runs"]
    assert telling_words(Photo(None, "x", 1, (), {}), ("tench", "golf ball")) == ["ball", "golf"]
    assert telling_words(Photo(None, "x", None, ("a red circle",), {"objects": []}), ()) == []


def test_shares_count_the_photos_of_a_source_that_say_anything():
    told = Photo(None, "flickr8k-0:1", None, ("A dog runs over the grass .",), {})
    other = Photo(None, "flickr8k-0:2", None, ("Two dogs .",), {})
    boxes = Photo(None, "coco-0:1", None, (), {"boxes": [["kite", 0, 0, 1, 1]]})
    found = shares_shown([told, other, boxes, Photo(None, "coco-0:2", 1, (), {})])
    assert found == {"flickr8k": {"dog": 1.0, "grass": 0.5}, "coco": {"kite": 1.0}}


def test_a_photo_without_labels_boxes_or_captions_gives_no_turns():
    scene = render_scene(0, 0)
    assert photo_turns(Photo(scene.image, "x"), IMAGENETTE, {}, random.Random(0)) == []
    told = Photo(scene.image, "x", scene.label, scene.captions, scene.to_meta())
    asked = photo_turns(told, (), {}, random.Random(0))
    drawn = [scene_questions(np.random.default_rng(seed), scene.objects) for seed in range(300)]
    truth = {(item.question, item.answer) for questions in drawn for item in questions}
    plain = [(question.replace(SHORT_ANSWER, ""), answer) for question, answer in asked]
    said = [turn for turn in plain if turn[0] not in CAPTION_PROMPTS and not turn[0].startswith("List")]
    exists = [turn for turn in said if turn[0].startswith("Is there")]  # names a thing out of very many
    assert len(said) > 5 and set(said) - set(exists) <= truth


def test_facts_about_a_scene_have_one_answer_each():
    for number in range(40):
        scene = render_scene(3, number)
        facts = scene_facts(Photo(scene.image, "x", None, scene.captions, scene.to_meta()), random.Random(number))
        assert len({said for said, _ in facts}) == len(facts)
        colors = dict(fact for fact in facts if "has color" in fact[0])
        for item in scene.objects:
            assert colors.get(f"The {item.shape} has color", item.color) == item.color


def test_patches_get_the_words_of_the_object_in_front_however_small_it_is():
    names = ["large", "red", "square", "left", "right", "top", "bottom", "small", "blue", "letter", "x"]

    def ids_of(text: str) -> list[int]:
        return [names.index(text.strip())]

    behind = SceneObject("square", "red", "large", (0.0, 0.0, 0.9, 0.6))
    before = SceneObject("letter", "blue", "small", (0.60, 0.30, 0.62, 0.32), "X")
    words = object_words([before, behind], 16, ids_of).reshape(4, 4, 6)
    read = [[[names[i] for i in patch if i != NO_WORD] for patch in row] for row in words.tolist()]
    assert read[0][0] == ["large", "red", "square", "left", "top"]
    assert read[1][2] == ["small", "blue", "letter", "right", "top", "x"]
    assert read[3][0] == []
    assert sum(bool(patch) for row in read for patch in row) == 8  # the lower half is empty
    assert (object_words([], 16, ids_of) == NO_WORD).all()


def test_word_loss_is_least_where_a_patch_says_its_words_and_no_others():
    table = torch.eye(8)
    words = torch.tensor([[[1, 2, NO_WORD], [NO_WORD] * 3]])
    says = torch.stack([table[1] + table[2], table[5]])[None]
    wrong = torch.stack([table[1] + table[3], table[5]])[None]
    assert word_loss(says, words, table) < word_loss(wrong, words, table)
    torch.testing.assert_close(word_loss(100 * says, words, table), word_loss(says, words, table))
    assert word_loss(says, torch.full_like(words, NO_WORD), table) == 0


def test_photo_word_loss_is_least_where_some_patch_says_what_was_said_of_the_photo():
    table = torch.eye(8)
    said, shares = torch.tensor([[1, 2], [NO_WORD, NO_WORD]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])

    def loss(*says: int) -> torch.Tensor:
        return photo_word_loss(torch.stack([table[list(says)], table[[5, 5, 5]]]), said, shares, table)

    assert loss(1, 2, 1) < loss(1, 1, 1) < loss(3, 1, 3) < loss(3, 4, 3)
    torch.testing.assert_close(loss(1, 2, 5), loss(5, 1, 2))  # wherever it stands
    assert photo_word_loss(table[None], torch.full((1, 2), NO_WORD), torch.zeros(1, 2), table) == 0


@pytest.fixture(scope="module")
def untrained() -> tuple[LlavaForConditionalGeneration, object]:
    torch.manual_seed(0)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPModel(CLIPConfig(vision_config=vision | {"image_size": 224, "patch_size": 56}, text_config=text))
    tokenizer = train_tokenizer(WORDS * 3, 400)
    return new_llava(clip, tokenizer, torch.zeros(32), torch.ones(32)).eval(), tokenizer


def test_training_and_chatting_lay_tokens_out_alike(untrained):
    llava, tokenizer = untrained
    processor = new_processor(tokenizer, patch_size=56)
    content = [{"type": "image"}, {"type": "text", "text": "What color is it?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": "And the size?"},
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    shown = Image.new("RGB", (300, 200))  # the template wrote what a prompt starts with
    chat = processor(text=prompt, images=shown, return_tensors="pt", add_special_tokens=False)["input_ids"][0].tolist()
    examples = Conversations(np.zeros((1, 16, 32), np.float16), [], LESSON, tokenizer, 0)
    trained = examples._lay_out([("What color is it?", "red"), ("And the size?", "small")], together=True)[0]
    assert trained[: len(chat)] == chat


def example(examples: Conversations, tokens: torch.Tensor, turns: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """What is learned from a photo of these patch tokens (patches, D), of which nothing else was said."""
    laid = examples._lay_out(turns, together=False)
    found = {name: torch.tensor(values) for name, values in zip(LAID_OUT, laid, strict=True)}
    found |= {"tokens": tokens, "words": torch.full((len(tokens), 6), NO_WORD)}
    return found | {"said": torch.zeros(0, dtype=torch.long), "shares": torch.zeros(0)}


@torch.no_grad()
def test_turns_that_share_a_photo_are_learned_as_if_each_stood_alone(untrained):
    llava, tokenizer = untrained
    learner = LlavaLearner(llava, tokenizer)
    examples = Conversations(np.zeros((1, 16, 32), np.float16), [], LESSON, tokenizer, 0)
    item = partial(example, examples, torch.randn(16, 32))
    turns = [("What color is it?", "red"), ("And the size?", "small one"), ("Dogs?", "two dogs run")]
    packed = learner.loss(_collate([item(turns)], tokenizer.pad_token_id))["answers"]
    alone = learner.loss(_collate([item([turn]) for turn in turns], tokenizer.pad_token_id))["answers"]
    torch.testing.assert_close(packed, alone)
    other = learner.loss(_collate([item([("What color is it?", "blue"), *turns[1:]])], tokenizer.pad_token_id))
    assert not torch.allclose(other["answers"], alone)


def test_in_bfloat16_the_language_model_multiplies_and_the_loss_does_not(untrained, tmp_path):
    llava, tokenizer = untrained
    examples = Conversations(np.zeros((1, 16, 32), np.float16), [], LESSON, tokenizer, 0)
    item = example(examples, torch.randn(16, 32), [("What color is it?", "red"), ("Dogs?", "two dogs run")])
    batch = _collate([item], tokenizer.pad_token_id)
    layer = llava.model.language_model.layers[0].mlp.up_proj
    kinds = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    whole, mixed = (
        LlavaLearner(llava, tokenizer, LlavaOptions(tmp_path, precision=precision, device="cpu").autocast).loss(batch)
        for precision in ("no", "bf16")
    )
    handle.remove()
    assert kinds == [torch.float32, torch.bfloat16]
    assert mixed["answers"].dtype == torch.float32
    torch.testing.assert_close(mixed["answers"], whole["answers"], rtol=0.02, atol=0)
    assert not torch.equal(mixed["answers"], whole["answers"])


def test_a_stage_goes_on_from_a_checkpoint_of_its_own_settings_alone(tmp_path):
    model, stage = torch.nn.Linear(2, 1), Stage("both", 2, {"weight": 1e-3})

    def go(stage: Stage, batch: int = 4) -> None:
        def loss_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"loss": model(batch["x"]).square().mean()}

        batches = repeat({"x": torch.ones(1, 2)})
        train(stage, model, lambda step: batches, loss_of, tmp_path, torch.device("cpu"), {"batch": batch})

    go(stage)
    trained = model.weight.detach().clone()
    go(stage)
    assert torch.equal(model.weight, trained)
    for changes, said in ((dict(steps=3), "steps: 2 then, 3 now"), (dict(rates={"weight": 1e-2}), "rates: .*")):
        with pytest.raises(ValueError, match=rf"step-00000002 is of another recipe \({said}\)"):
            go(replace(stage, **changes))
    with pytest.raises(ValueError, match=r"another recipe \(batch: 4 then, 5 now\)"):
        go(stage, batch=5)


def test_a_stage_that_goes_on_says_no_step_twice(tmp_path):
    model, stage = torch.nn.Linear(2, 1), Stage("both", 30, {"weight": 1e-3}, save_every=10)

    def go(breaks_off: int) -> None:
        def batches(step: int) -> Iterator[dict[str, torch.Tensor]]:
            yield from ({"x": torch.ones(1, 2)} for _ in range(step, breaks_off))
            raise KeyboardInterrupt

        def loss_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"loss": model(batch["x"]).square().mean()}

        train(stage, model, batches, loss_of, tmp_path, torch.device("cpu"), {})

    with pytest.raises(KeyboardInterrupt):
        go(breaks_off=20)
    shutil.rmtree(tmp_path / "checkpoints" / "both" / "step-00000020")
    go(breaks_off=30)
    assert [json.loads(line)["step"] for line in (tmp_path / "both.jsonl").read_text().splitlines()] == [10, 20, 30]


def test_a_run_is_gone_on_with_by_its_own_recipe_alone(shards, tmp_path):
    photos = Data(shards).training_photos(TALKED_OF, 4)
    options = LlavaOptions(shards, out=tmp_path / "out", scenes=4)
    for _ in range(2):
        begin(options.out, options.shared(photos) | {"tower": "1.0"})
    for changes, said in ((dict(vocabulary=9), "vocabulary: 4096 then, 9 now"), (dict(seed=1), "seed: 0 then, 1 now")):
        with pytest.raises(ValueError, match=rf"out holds a run of another recipe \({said}\): give another --out"):
            begin(options.out, replace(options, **changes).shared(photos) | {"tower": "1.0"})
    with pytest.raises(ValueError, match=r"\(tower: 1\.0 then, 2\.0 now\)"):
        begin(options.out, options.shared(photos) | {"tower": "2.0"})


def test_what_a_recipe_cannot_do_is_one_sentence(shards, tmp_path):
    with pytest.raises(ValueError, match="The device 'abacus' cannot be used"):
        build_clip(ClipOptions(shards, tmp_path, device="abacus"))
    with pytest.raises(ValueError, match="nowhere holds no CLIP: --clip is the folder"):
        build_llava(LlavaOptions(shards, tmp_path, clip=tmp_path / "nowhere", device="cpu"))
    for train_one, least in ((train_clip_tokenizer, 514), (train_tokenizer, 260)):
        assert len(train_one(WORDS, least)) == least
        with pytest.raises(ValueError, match=f"vocabulary is {least - 1}; letters and marks alone are {least} entries"):
            train_one(WORDS, least - 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_photo_is_named_whoever_reads_it(workers, tmp_path):
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no photo")
    photos = Selection(open_photos(tmp_path), range(2))
    with pytest.raises(ValueError, match=r"1\.png: not a JPEG.* image: the recipe needs its shards whole") as caught:
        list(center_views(photos, workers))
    assert len(str(caught.value).splitlines()) == 1


def test_what_breaks_off_while_it_writes_what_was_said_of_photos_writes_it_anew(untrained, tmp_path, monkeypatch):
    def half(path: Path, text: str, encoding: str | None = None) -> None:
        path.open("w", encoding=encoding).write(text[:9])
        raise KeyboardInterrupt

    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, patch_size=56)
    clip = CLIPModel(CLIPConfig(vision_config=vision | {"image_size": 224}))
    photos, options = Selection(open_photos("scenes:2"), range(2)), LlavaOptions(tmp_path, tmp_path, workers=0)
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        photo_tokens(clip, photos, "key", options, torch.device("cpu"))
    monkeypatch.undo()
    assert photo_tokens(clip, photos, "key", options, torch.device("cpu"))[0].shape == (2, 16, 32)


def test_photos_without_captions_are_learned_from_too(shards):
    teacher = open_teacher(f"timm:vit_tiny_patch16_224:{shards / 'vit_tiny_patch16_224.safetensors'}")
    tokenizer = train_clip_tokenizer(WORDS, 600)
    clip = new_clip(teacher.model, tokenizer, torch.zeros(192), torch.rand(2, 3, 224, 224))
    said = [(), (), ("a dog",)]
    features = Features(torch.randn(3, 192), torch.randn(3, 1000).half(), said, torch.full((3,), -1))
    learner = ClipLearner(clip, tokenizer, teacher, features)
    parts = [learner.text_loss({"index": torch.tensor(index), "step": torch.tensor(1)}) for index in ([0, 1], [0, 2])]
    assert parts[0].keys() == {"classes", "rows"} and parts[1].keys() == {"captions", "classes", "rows"}
    assert all(loss.isfinite() for loss in parts[0].values())


def test_both_recipes_run_resume_and_give_folders_that_transformers_opens(shards, tmp_path):
    small = dict(data=shards, scenes=10, workers=0, device="cpu")
    clip = dict(out=tmp_path / "clip", text_steps=2, text_batch=12, both_batch=6, vocabulary=700, **small)
    build_clip(ClipOptions(both_steps=1, **clip))
    state = (tmp_path / "clip" / "both.jsonl").read_text()
    folder = build_clip(ClipOptions(both_steps=1, **clip))  # all is done: nothing is trained again
    assert (tmp_path / "clip" / "both.jsonl").read_text() == state
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    assert model.config.vision_config.num_hidden_layers == 12
    assert AutoTokenizer.from_pretrained(folder)("a dog")["input_ids"]

    steps = dict.fromkeys((f"{stage}_steps" for stage in ("projector", "facts", "scene", "both")), 1)
    llava = dict(clip=folder, out=tmp_path / "llava", batch=4, vocabulary=600, **steps, **small)
    folder = build_llava(LlavaOptions(**llava))
    host = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tower = {name: tensor for name, tensor in host.state_dict().items() if "vision_tower" in name}
    ours = model.vision_model.state_dict()
    names = {name: name.split("vision_model.")[-1].split("vision_tower.")[-1] for name in tower}
    assert tower and all(torch.equal(tensor, ours[names[name]]) for name, tensor in tower.items())
    assert {path.split("-")[0] for path in TALKED_OF} < {path.split("-")[0] for path in PHOTOS}


def test_what_is_shipped_names_no_folder(tmp_path):
    described = tmp_path / "bootstrap.json"
    options = {"leave_out": "/home/me/names.txt", "host_prompts": None, "seed": 4}
    facts = {"photos": ["/home/me/a.tar", "scenes:4:5"], "options": options, "teacher": "clip-tiny"}
    described.write_text(json.dumps(facts | {"started_from": "/home/me/one", "host": {"source": "/home/me/llava"}}))
    origin = {"teacher": "clip-tiny", "earlier": "/home/me/one/", "rows": [{"student": "a/b"}]}
    (tmp_path / "inheritance.json").write_text(json.dumps(origin))
    name_without_folders(tmp_path)
    assert json.loads((tmp_path / "inheritance.json").read_text()) == origin | {"earlier": "one"}
    facts = json.loads(described.read_text())
    assert facts["photos"] == ["a.tar", "scenes:4:5"]
    assert facts["options"] == {"leave_out": "names.txt", "host_prompts": None, "seed": 4}
    assert (facts["teacher"], facts["started_from"], facts["host"]) == ("clip-tiny", "one", {"source": "llava"})


def test_a_card_written_by_hand_stays_when_its_model_is_stored_anew(tmp_path, monkeypatch):
    given = tmp_path / "given"
    shutil.copytree(WEIGHTS / "clip-tiny", given)
    (given / "README.md").write_text("By a program.")
    stored = tmp_path / "weights" / "clip-tiny"
    stored.mkdir(parents=True)
    (stored / "config.json").write_text("{}")
    (stored / "README.md").write_text("By hand.")
    monkeypatch.setattr("zoo.ship.WEIGHTS", stored.parent)
    ship(ShipOptions(clip=given))
    assert (stored / "model.safetensors").is_file()
    assert (stored / "README.md").read_text() == "By hand."
