"""How fast a student is bootstrapped, beside the least time that its multiply-adds and its photos allow.

    teacher = open_dense("clip-b16")
    row = measure_bootstrap(teacher, student_config(teacher.config), photos, options, ceiling)

A run is timed as it is: `sfvlm.bootstrap.run` in a temporary folder, without a host; what its own log says of every few steps
are the timed runs. Its floor is the slower of two that can go on at once:

- products: one forward of the teacher and three of the student, for going back costs two, at the rate of the fastest large
  product of this device and dtype. Frozen blocks get no gradient of their weights, so a student with many of them needs less.
- decode: the same workers reading, cropping and resizing the same photos, with nobody waiting for anything else.
"""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from ..alternatives.costs import macs
from ..bootstrap.options import BootstrapOptions
from ..bootstrap.run import METRICS, bootstrap
from ..encoder.configuration import SparseFormerConfig
from ..encoder.sparseformer import SparseFormerModel
from ..photos.batches import EpochSampler, Selection, ViewDataset, view_loader
from ..photos.sources import Photos
from ..teachers.inherit import inherit
from ..teachers.open import DenseTransformer, Teacher
from .floor import Ceiling
from .measure import Measures, Row, cost_rows

STEPS_A_RUN = 5
IMAGENET_PHOTOS = 1_281_167  # of its training part


def measure_bootstrap(
    teacher: Teacher,
    config: SparseFormerConfig,
    photos: Photos,
    options: BootstrapOptions,
    ceiling: Ceiling,
    *,
    repeats: int = 5,
    warmups: int = 1,
) -> Row:
    """Bootstraps for a few steps, and counts what that takes.

    Args:
        teacher, config: The teacher and its student, from `open_dense` and `student_config`.
        photos: Trained on, in turns however few there are.
        options: Of the run; how many steps it has and what it writes along the way are decided here.
        ceiling: Of the run's device, at its precision.
        repeats: Timed runs of `STEPS_A_RUN` steps.
        warmups: Such runs before them.

    Returns:
        A row of `cost_rows`: multiply-adds of a photo's forward, photos a second of both parts of the floor and of the run,
        the share of the floor that the run reaches, and the hours that one pass over ImageNet's training photos takes.

    Raises:
        ValueError: The options do not fit the student, or no photo can be read.
    """
    student, report = inherit(teacher, config)
    options = replace(
        options,
        steps=STEPS_A_RUN * (warmups + repeats),
        log_every=STEPS_A_RUN,
        eval_every=0,
        save_every=STEPS_A_RUN * (warmups + repeats),
        held_back=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        bootstrap(teacher, student, report, photos, out, options)
        logged = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    speeds = [line["photos_a_second"] for line in logged if "photos_a_second" in line][warmups:]

    with torch.device("meta"):  # only counted
        dense, sparse = DenseTransformer(teacher.config), SparseFormerModel(config)
    forward = {"teacher_macs": macs(dense, config.image_size), "student_macs": macs(sparse, config.image_size)}
    products = ceiling.operations / (2 * (forward["teacher_macs"] + 3 * forward["student_macs"]))
    decode = decode_throughput(photos, config.image_size, options, STEPS_A_RUN * repeats)
    median = statistics.median(speeds)
    facts: Measures = {
        **forward,
        "products_throughput": products,
        "decode_throughput": decode,
        "floor_share": median / min(products, decode),
        "imagenet_pass_hours": IMAGENET_PHOTOS / median / 3600,
    }
    runs = [{"bootstrap_throughput": speed} for speed in speeds]
    (row,) = cost_rows([(f"{teacher.source}@{config.num_tokens}", teacher.source)], options.batch_size, [facts], [runs])
    return row


def decode_throughput(photos: Photos, image_size: int, options: BootstrapOptions, batches: int) -> float:
    """Training views a second that the run's workers make with nothing else to do."""
    views = ViewDataset(
        Selection(photos, range(len(photos))), image_size, training=True, seed=options.seed, scale=options.crop_scale
    )
    loader = iter(view_loader(views, EpochSampler(len(views), options.batch_size, options.seed), options.workers))
    for _ in islice(loader, max(options.workers, 1)):  # each has begun with one
        pass
    start = time.perf_counter()
    for _ in islice(loader, batches):
        pass
    return batches * options.batch_size / (time.perf_counter() - start)
