"""Words to choose from and defaults, which the library and the flags of its commands share.

This module imports nothing of the package and no torch: who asks a command for its flags waits for neither.
"""

from typing import Literal

Focusing = Literal["inherited", "chosen", "fresh"]
TuneMethod = Literal["full", "lora"]
Anchor = Literal["average", "nearest"]
Salient = Literal["attention", "words"]
Task = Literal["auto", "classification", "retrieval", "fidelity"]
Split = Literal["train", "test", "all"]
# matched: an object is asked for as often where it is absent as where it is present, and there where it would be
# expected; knowing the objects' names alone then answers half. The others are POPE's rules (arXiv 2305.10355), by
# which a rare object is nearly always present.
Negatives = Literal["matched", "random", "popular", "adversarial"]

SCENE_TEST_SEED = 1_000_000  # of the scenes that are for evaluation
SPEED_PROMPT = "Describe the photo in detail."
SCALING_IMAGE_SIZES = (224, 336, 448, 560, 672)  # multiples of 14 and of 16
