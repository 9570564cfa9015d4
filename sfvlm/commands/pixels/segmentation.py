"""The command that measures what models say of each pixel."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from ...dense.masks import MaskedPhotos, Misfit, checked, open_masked
from ...dense.probe import ProbeOptions
from ...dense.vocabulary import Way
from ...encoder.sparseformer import SparseFormerModel
from ...evaluate.texts import open_text_encoder
from ...segmentation.evaluation import Candidate, Evaluation, Windows, costs, evaluate
from ...segmentation.model import label_names
from ...segmentation.names import first_names, read_names
from ...segmentation.open_vocabulary import NamedMap, vocabulary
from ...segmentation.overlays import Layer, panel
from ...segmentation.probing import material, probe
from ...segmentation.towers import MapOf, Tower
from ...segmentation.training import class_names
from ...segmentation.views import normalized, whole_view
from ...util.console import say
from ...util.devices import usable_device
from ...util.files import make_folder, replacing
from ...util.results import aligned, check_json, short_names, write_results
from ...util.subsets import spread
from .options import SegmentationCommand
from .towers import cheap_ways, is_segmenter, names_in, open_segmenter, open_tower, teacher_of

COLUMNS = (
    ("tokens", "tokens", "{:.0f}"), ("gmacs", "GMACs", "{:.3g}"), ("milliseconds", "ms", "{:.1f}"), ("miou", "mIoU", "{:.1%}"),
    ("miou_low", "95 % from", "{:.1%}"), ("miou_high", "to", "{:.1%}"), ("kept", "kept", "{:.1%}"), ("kept_low", "from", "{:.1%}"),
    ("kept_high", "to", "{:.1%}"), ("accuracy", "accuracy", "{:.1%}"),
)  # fmt: skip


def segmentation_command(command: SegmentationCommand) -> None:
    """Opens models and photos, fits probes or reads names, measures all, prints a table, and writes the results."""
    check_json(command.out)
    _check(command)
    device = usable_device(command.device)
    names = None if command.names is None else read_names(command.names)
    given = names_in(command.classes) if names is None else first_names(names)
    photos = open_masked(command.data, reduce_labels=command.reduce_labels, num_classes=len(given) if given else None)
    photos = _some(photos, command.limit)
    if names is not None:
        task, (candidates, labels) = "open_vocabulary_segmentation", (_named(command, names, device), given)
    else:
        task, (candidates, labels) = "segmentation", _trained(command, photos, given, device)
    assert labels is not None
    photos = MaskedPhotos(
        photos.pairs, photos.origins, photos.reduce_labels, len(labels), photos.class_names, photos.passed_over
    )
    windows = None if command.shortest is None else Windows(command.shortest, command.stride)
    shared: dict[str, Any] = dict(windows=windows, batch_size=command.batch_size, device=device)
    (dataset,) = short_names([command.data.removesuffix(".tar")])
    found = evaluate(candidates, photos, labels, dataset=dataset, task=task, **shared)
    remarks = _remarks(photos, found, labels)
    if command.out is not None:
        write_results(command.out, found.rows, {"skipped": found.skipped, "remarks": remarks}, device)
    say(f"\n{dataset}: {len(photos) - len(found.skipped)} photos")
    say(_table(found))
    for remark in remarks:
        say(remark)
    if command.out is not None:
        if command.overlays:
            _draw(candidates, photos, labels, command.overlays, command.out.with_suffix(""), device)
        say(f"\nWrote {command.out}.")


def _check(command: SegmentationCommand) -> None:
    """Raises ValueError where flags contradict each other."""
    trained = [name for name in command.model if is_segmenter(name)]
    others = [name for name in command.model if name not in trained]
    if command.names is not None:
        if trained:
            raise ValueError(f"{trained[0]} was trained with classes of its own: --names is for towers that were not.")
        if command.controls or command.train is not None:
            raise ValueError("With --names nothing is trained: leave out --train and --controls.")
        if unknown := [way for way in command.ways if way not in get_args(Way)]:
            raise ValueError(f"There is no way {unknown[0]!r}; the ways are {', '.join(get_args(Way))}.")
        if command.classes is not None:
            raise ValueError("--names says what the classes are called: leave out --classes.")
    elif (others or command.controls) and command.train is None:
        what = f"{others[0]} is a tower, which knows no classes" if others else "The controls know no classes"
        raise ValueError(
            f"{what}: give photos with masks to fit a linear probe to (--train), or class names (--names)."
        )
    if command.names is None and command.threshold:
        raise ValueError(
            f"--threshold is {command.threshold}, which is of maps from names: give --names, or leave it out."
        )
    if not others and not command.controls:
        for flag in ("guide", "teacher", "train"):
            if getattr(command, flag) is not None:
                raise ValueError(f"--{flag} is for towers and controls, and all of --model are trained: leave it out.")
    if command.overlays and command.out is None:
        raise ValueError("--overlays are drawn beside the results: give --out.")


def _trained(
    command: SegmentationCommand, photos: MaskedPhotos, given: Sequence[str] | None, device: torch.device
) -> tuple[list[Candidate], tuple[str, ...]]:
    """The teacher first; then models as they are, towers and the cheap ways with a probe each. And the classes."""
    segmenters = [(name, open_segmenter(name)) for name in command.model if is_segmenter(name)]
    labels = tuple(given) if given else label_names(segmenters[0][1].config) if segmenters else None
    for name, model in segmenters:
        if label_names(model.config) != labels:
            raise ValueError(
                f"{name} has the classes {', '.join(label_names(model.config)[:4])}, ..., and others have others."
            )
    towers: list[tuple[str, nn.Module]] = []
    learned = None
    if command.train is not None:
        opened = [open_tower(name, command.guide) for name in command.model if not is_segmenter(name)]
        teacher = teacher_of(command.model, command.teacher)
        towers.append(("teacher", MapOf(teacher.model)))
        budgets: dict[int, None] = dict.fromkeys(command.num_tokens)
        for tower, name in zip(opened, short_names([each.source for each in opened]), strict=True):
            if not isinstance(tower.tower, SparseFormerModel):
                towers.append((name, MapOf(tower.tower)))
                continue
            for count in command.num_tokens or [tower.tower.config.budget]:
                towers.append((f"{name}@{count}", MapOf(tower.tower, tower.guide, count)))
                if tower.guide is not None:
                    towers.append((f"{name}@{count}, boxes alone", MapOf(tower.tower, None, count)))
                budgets[count] = None
        if command.controls:
            if not budgets:
                raise ValueError("--controls needs a budget: give --num-tokens, or a --model that has one.")
            towers += [(name, MapOf(tower)) for name, tower in cheap_ways(teacher, [*budgets])]
        known = photos.num_classes
        training = checked(open_masked(command.train, reduce_labels=command.reduce_labels, num_classes=known))
        for remark in training.remarks:
            say(remark)
        labels = labels or class_names(photos.class_names, max(training.num_classes, checked(photos).num_classes))
        learned = training.photos
    assert labels is not None
    modules: dict[str, nn.Module] = {}
    configs: dict[str, Any] = {}
    materials: dict[tuple[Any, ...], Any] = {}
    for name, tower in towers:
        config = _config(tower.tower)  # type: ignore[arg-type]
        assert learned is not None
        key = (config.image_size, config.resample)
        materials[key] = materials.get(key) or material(learned, config)
        tower.to(device).eval()
        options = ProbeOptions(epochs=command.epochs)
        head = probe(
            tower,
            materials[key],
            len(labels),
            config,
            options,
            batch_size=command.batch_size,
            device=device,
            title=name,
        )
        modules[name], configs[name] = nn.Sequential(tower, head).eval(), config
    for (_, model), name in zip(segmenters, short_names([name for name, _ in segmenters]), strict=True):
        for count in command.num_tokens or [None]:
            title = name if count is None else f"{name}@{count}"
            modules[title] = nn.Sequential(model.map_of(count), model.head).to(device).eval()
            configs[title] = model.config.sparse
    sources = {"teacher": command.teacher or ""}
    return _candidates(modules, configs, sources), labels


def _named(command: SegmentationCommand, names: Any, device: torch.device) -> list[Candidate]:
    """Each way of the dense tower, and of the sparse ones behind it; what these keep is of the dense tower in the same way."""
    teacher = teacher_of(command.model, command.teacher)
    text = open_text_encoder(teacher.source, device)
    if text is None:
        raise ValueError(f"The teacher {teacher.source} has no text tower: names need a CLIP.")
    words = vocabulary(text, names, threshold=command.threshold)
    modules: dict[str, nn.Module] = {}
    configs: dict[str, Any] = {}
    sparse = [(name, open_tower(name, command.guide)) for name in command.model]
    first: dict[Any, NamedMap] = {}  # of each tower, whose other ways ask it nothing anew
    for way in command.ways:
        title = f"teacher, {way}"
        modules[title] = first[""] = NamedMap(teacher.model, words, way, beside=first.get(""))  # type: ignore[arg-type]
        configs[title] = teacher.config
        for (_, opened), name in zip(sparse, short_names(command.model), strict=True):
            tower = opened.tower
            if not isinstance(tower, SparseFormerModel):
                raise ValueError(f"{opened.source} is no SparseFormer: give the dense tower as --teacher.")
            for count in command.num_tokens or [tower.config.budget]:
                for guide in (opened.guide, None) if opened.guide is not None else (None,):
                    alone = ", boxes alone" if guide is None and opened.guide is not None else ""
                    key = f"{name}@{count}{alone}"
                    named = NamedMap(tower, words, way, count, guide, first.get(key))  # type: ignore[arg-type]
                    modules[f"{key}, {way}"] = first[key] = named
                    configs[f"{key}, {way}"] = tower.config
    for module in modules.values():
        module.to(device).eval()
    against = {title: f"teacher, {title.rpartition(', ')[2]}" for title in modules}
    return [replace(each, against=against[each.name]) for each in _candidates(modules, configs, {}, words.decide)]


def _candidates(
    modules: dict[str, nn.Module], configs: dict[str, Any], sources: dict[str, str], decide: Any = None
) -> list[Candidate]:
    sizes = {config.image_size for config in configs.values()}
    prices: dict[str, dict[str, float]] = {}
    for size in sizes:
        prices |= costs({name: each for name, each in modules.items() if configs[name].image_size == size}, size)
    more = {} if decide is None else {"decide": decide}
    return [
        Candidate(
            name, sources.get(name, name), each, configs[name], cost={"tokens": _tokens(each), **prices[name]}, **more
        )
        for name, each in modules.items()
    ]


def _config(tower: Tower) -> Any:
    """What says how a tower sees photos: of a reduced one, the dense tower in it."""
    return getattr(tower.config, "dense", tower.config)


def _tokens(module: nn.Module) -> int:
    """Image tokens after the last block."""
    inner: Any = module[0] if isinstance(module, nn.Sequential) else module
    tower = inner.tower
    if isinstance(tower, SparseFormerModel):
        return inner.num_tokens or tower.config.budget
    return getattr(tower.config, "num_tokens", 0) if hasattr(tower.config, "method") else tower.config.teacher_grid**2


def _some(photos: MaskedPhotos, limit: int | None) -> MaskedPhotos:
    if limit is None:
        return photos
    pairs = [photos.pairs[index] for index in spread(len(photos), limit)]
    return MaskedPhotos(
        pairs, photos.origins, photos.reduce_labels, photos.num_classes, photos.class_names, photos.passed_over
    )


def _remarks(photos: MaskedPhotos, found: Evaluation, labels: Sequence[str]) -> list[str]:
    """What a person should be told of the measurement, a sentence each."""
    averaged, absent = found.averaged, [name for number, name in enumerate(labels) if number not in found.averaged]
    said = f"mIoU averages the {len(averaged)} classes that occur in the masks"
    said += f"; not {', '.join(absent[:8])}{' and others' if len(absent) > 8 else ''}." if absent else "."
    remarks = [said, photos.passed_over.sentence("photos with masks")]
    if found.skipped:
        first = found.skipped[0]
        remarks.append(f"Left out {len(found.skipped)} photos, the first {first['key']}: {first['reason']}.")
    return list(filter(None, remarks))


def _table(found: Evaluation) -> str:
    lines = [["model", *(heading for _, heading, _ in COLUMNS)]]
    for row in found.rows:
        metrics = row["metrics"]
        lines.append(
            [row["model"], *(form.format(metrics[name]) if name in metrics else "" for name, _, form in COLUMNS)]
        )
    return aligned(lines)


@torch.inference_mode()
def _draw(
    candidates: Sequence[Candidate],
    photos: MaskedPhotos,
    labels: Sequence[str],
    count: int,
    folder: Path,
    device: torch.device,
) -> None:
    """Pictures of some photos: the mask, and what the first few candidates see."""
    make_folder(folder)
    for index in spread(len(photos), count):
        try:
            photo = photos[index]
        except Misfit:
            continue
        layers = [Layer("mask", photo.mask)]
        for candidate in candidates[:5]:
            pixels = normalized(whole_view(photo.image, candidate.config)[None].to(device), candidate.config)
            enlarged = nn.functional.interpolate(
                candidate.run(pixels).float(), size=photo.mask.shape, mode="bilinear", align_corners=False
            )
            layers.append(Layer(candidate.name, candidate.decide(enlarged)[0].cpu().numpy()))
        path = folder / f"{photo.key.replace('/', '_').replace(':', '_')}.png"
        with replacing(path) as temporary:
            panel(photo.image, layers, labels).save(temporary)
