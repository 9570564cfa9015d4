"""Names of the classes of public data sets, and what pixels without a class may show: for maps from names alone.

A file of names has a line a class, several names of one parted by commas. `voc`, `coco-objects` and `camvid` are known by name.
"""

from pathlib import Path

from ..dense.vocabulary import names_of
from ..util.files import read_text

Names = tuple[tuple[str, ...], ...]

# What a background may be: the 26 names that SCLIP (arXiv 2312.01597) gives its first class, in its repository.
BACKGROUND = (
    "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed", "building", "cloud", "lamp",
    "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "floor", "hill", "rail", "fence",
)  # fmt: skip
_PERSON = (
    "person", "person in shirt", "person in jeans", "person in dress", "person in sweater", "person in skirt", "person in jacket",
)  # fmt: skip
_VOC: Names = (
    BACKGROUND, ("aeroplane",), ("bicycle",), ("bird",), ("ship",), ("bottle",), ("bus",), ("car",), ("cat",), ("chair",), ("cow",),
    ("table",), ("dog",), ("horse",), ("motorbike",), _PERSON, ("pottedplant",), ("sheep",), ("sofa",), ("train",),
    ("television monitor", "tv monitor", "monitor", "television", "screen"),
)  # fmt: skip
_COCO = """bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, bench, bird,
cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush"""
_CAMVID = "sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist"
KNOWN: dict[str, Names] = {
    "voc": _VOC,
    "coco-objects": (BACKGROUND, (*_PERSON, "body"), *((name,) for name in names_of(_COCO.replace("\n", " ")))),
    "camvid": tuple((name,) for name in names_of(_CAMVID)),
}


def read_names(source: str) -> Names:
    """The names of each class, of a data set that is known or of a file.

    Raises:
        ValueError: It is neither, or a line of the file names nothing.
    """
    if source in KNOWN:
        return KNOWN[source]
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{source} is neither a file of class names nor one of {', '.join(KNOWN)}.")
    lines = read_text(path).rstrip().split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip(" ,;"):
            raise ValueError(
                f"Line {number} of {path} is blank: an index is the number of a line, from 0, so fill or remove it."
            )
    return tuple(map(names_of, lines))


def first_names(names: Names) -> tuple[str, ...]:
    """What to call each class in a table; what is background by many names is called so."""
    return tuple("background" if each == BACKGROUND else each[0] for each in names)
