"""Objects that captions name: COCO's 80, by the words people use for them.

    captions -> their words, pairs that are one name taken as one -> the objects that these show, or may show

Word lists like CHAIR's (arXiv 1809.02156), two of them: a surfer shows a surfboard, the surf may show one. What captions do not
say may be there all the same. The more captions of a photo agree, the surer.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain

COCO_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, "
    "bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, "
    "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, "
    "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")
_BIKES = "bike, bikes, biker, bikers"  # of either kind
_ANIMALS = "animal, animals, pet, pets, cub, cubs"
# Words that show a thing, beside its name and the name's plural.
SHOWS = {
    "person": "people, man, men, woman, women, boy, boys, girl, girls, child, children, kid, kids, baby, babies, toddler, toddlers, "
    "lady, ladies, guy, guys, gentleman, gentlemen, adult, adults, teenager, teenagers, player, players, worker, workers, "
    "soldier, soldiers, dancer, dancers, runner, runners, swimmer, swimmers, hiker, hikers, climber, climbers, skater, skaters, "
    "skier, skiers, surfer, surfers, snowboarder, snowboarders, skateboarder, skateboarders, cyclist, cyclists, bicyclist, "
    "bicyclists, motorcyclist, motorcyclists, biker, bikers, dirt biker, dirt bikers",
    "bicycle": "bicyclist, bicyclists, cyclist, cyclists, bicycling, mountain bike, mountain bikes",
    "motorcycle": "motorcyclist, motorcyclists, motorbike, motorbikes, motor bike, motor bikes, dirtbike, dirtbikes, dirt bike, "
    "dirt bikes, dirt biker, dirt bikers",
    "airplane": "aeroplane, aeroplanes",
    "boat": "sailboat, sailboats, rowboat, rowboats, canoe, canoes, kayak, kayaks, ship, ships",
    "fire hydrant": "hydrant, hydrants",
    "bird": "seagull, seagulls, duck, ducks, goose, geese, swan, swans, pigeon, pigeons",
    "cat": "kitten, kittens",
    "dog": "puppy, puppies",
    "skis": "skier, skiers",
    "snowboard": "snowboarder, snowboarders, snowboarding",
    "sports ball": "ball, balls, basketballs, soccer ball, soccer balls, tennis ball, tennis balls",
    "skateboard": "skateboarder, skateboarders, skateboarding",
    "surfboard": "surfer, surfers, surfing, surfs",
    "tennis racket": "tennis racquet, tennis racquets",
    "knife": "knives",
    "donut": "doughnut, doughnuts",
    "orange": "oranges",
    "couch": "sofa, sofas",
    "tv": "television, televisions",
    "cell phone": "cellphone, cellphones, mobile phone, mobile phones",
    "refrigerator": "fridge, fridges",
}
# Words that stand with a thing often enough that nobody can say it is not there.
MAY_SHOW = {
    "person": "someone, somebody, individual, individuals, couple, couples, crowd, crowds, group, team, teams, family, "
    "families, friend, friends, mother, mom, father, dad, son, daughter, brother, brothers, sister, sisters, bride, groom, he, she, "
    "him, his, her, hers, they, their, who, rider, riders, racer, racers, driver, drivers, jockey, cowboy, cowboys, fisherman, "
    "fishermen, policeman, policemen, officer, officers, police, pedestrian, pedestrians, audience, spectators, fan, fans, performer, "
    "performers, singer, musician, musicians, band, catcher, batter, pitcher, wrestler, wrestlers, goalie, coach, teen, teens, "
    "youth, youths, infant, male, males, female, females, face, faces, hand, hands, bicycler, snowboards, surfing, surfs, skiing, "
    "skateboarding, snowboarding, bicycling, wakeboarder, kayaker, kayakers, sledder, gymnast, athlete, athletes, student, students",
    "bicycle": f"{_BIKES}, bicycler, cycling, cycle, cycles, bmx, tricycle, rider, riders",
    "motorcycle": f"{_BIKES}, motorcycling, motocross, moped, scooter, cycle, cycles, rider, riders, racer, racers",
    "car": "vehicle, vehicles, racecar, racecars, automobile, automobiles, suv, sedan, van, vans, jeep, jeeps, taxi, taxis, cab, "
    "limo, limousine, traffic, convertible, rally",
    "truck": "vehicle, vehicles, pickup, suv, jeep, jeeps, lorry, traffic",
    "bus": "vehicle, vehicles, van, vans, traffic",
    "train": "subway, railway, locomotive",
    "airplane": "plane, planes, jet, jets, aircraft",
    "boat": "raft, rafts, rafting, kayaker, kayakers, kayaking, canoeing, rowing, sailing, paddle, paddles, jet",
    "traffic light": "light, lights, traffic, signal",
    "stop sign": "sign, signs",
    "bench": "seat, seats, picnic",
    "bird": f"{_ANIMALS}, gull, gulls, parrot, heron, eagle, hawk, chicken, chickens, rooster, flamingo, flamingos, crane, turkey, owl",
    "cat": _ANIMALS,
    "dog": f"{_ANIMALS}, pup, pups, canine, canines, hound, hounds, greyhound, greyhounds, terrier, terriers, retriever, labrador, "
    "lab, poodle, collie, husky, beagle, spaniel, bulldog, dachshund, chihuahua, shepherd, dalmatian, pug, mutt",
    "horse": f"{_ANIMALS}, pony, ponies, bronco, rodeo, jockey, horseback, stallion, mare, foal, donkey, donkeys, mule, mules",
    "sheep": f"{_ANIMALS}, lamb, lambs, goat, goats, ram",
    "cow": f"{_ANIMALS}, cattle, bull, bulls, calf, calves, ox, oxen, rodeo",
    "elephant": _ANIMALS,
    "bear": _ANIMALS,
    "zebra": _ANIMALS,
    "giraffe": _ANIMALS,
    "backpack": "pack, packs, bag, bags, knapsack, rucksack, hiker, hikers, backpacker, backpackers, backpacking",
    "umbrella": "parasol, parasols",
    "handbag": "bag, bags, purse, purses",
    "suitcase": "luggage, bag, bags, baggage",
    "tie": "necktie, neckties, suit, suits, tied",
    "frisbee": "disc, disk",
    "skis": "ski, skiing",
    "snowboard": "board, boards, snowboards",
    "sports ball": "soccer, football, basketball, baseball, volleyball, softball, tennis, golf, rugby, hockey, lacrosse, cricket, "
    "player, players, toy, toys",
    "kite": "parasail, parasailing, kiteboarding",
    "baseball bat": "bat, bats, batter, batting, baseball, softball",
    "baseball glove": "glove, gloves, mitt, catcher, baseball, softball",
    "skateboard": "skater, skaters, skating, skates, board, boards",
    "surfboard": "surf, board, boards, bodyboard, boogie",
    "tennis racket": "racket, rackets, racquet, racquets, tennis",
    "bottle": "drink, drinks, drinking, beer, beers, wine, water, alcohol",
    "wine glass": "glass, glasses, wine, drink, drinks",
    "cup": "mug, mugs, drink, drinks, drinking, coffee, beverage",
    "fork": "eating, silverware, utensils",
    "knife": "eating, silverware, utensils, cutting",
    "spoon": "eating, silverware, utensils",
    "bowl": "dish, dishes, eating, food",
    "cake": "birthday, dessert",
    "hot dog": "hotdog, hotdogs",
    "chair": "armchair, armchairs, seat, seats, stool, stools, sitting, sits, seated",
    "couch": "seat, sitting, sits, seated",
    "potted plant": "plant, plants, pot, pots, flower, flowers",
    "bed": "mattress, blanket, bedroom",
    "dining table": "table, tables, eating, dinner, restaurant",
    "tv": "screen, monitor",
    "laptop": "computer, computers",
    "keyboard": "computer, computers, typing, piano",
    "mouse": "computer, computers, mice",
    "remote": "controller",
    "cell phone": "phone, phones, cell, telephone",
    "book": "reading, reads, magazine",
    "clock": "watch",
    "vase": "flower, flowers",
    "teddy bear": "stuffed, toy, toys",
    "sink": "bathroom, kitchen",
    "toilet": "bathroom",
    "oven": "stove, kitchen",
    "refrigerator": "kitchen",
    "microwave": "kitchen",
}
UNSURE = ("orange",)  # names that may mean something else, as a colour


def times_shown(captions: Iterable[str], names: Sequence[str] = COCO_NAMES) -> Counter[str]:
    """How many of the captions show each object; none of 0."""
    return Counter(
        name for said in map(_said, captions) for name in names if not said.isdisjoint(_words_that_show(name))
    )


def objects_possible(captions: Iterable[str], names: Sequence[str] = COCO_NAMES) -> set[str]:
    """The objects that one of the captions shows or may show."""
    said = set(chain.from_iterable(map(_said, captions)))
    return {name for name in names if not said.isdisjoint(_words_that_show(name) | _words_that_may(name))}


@cache
def _words_that_show(name: str) -> frozenset[str]:
    own = [] if name in UNSURE else [name, f"{name}s", f"{name}es"]
    return frozenset([*own, *_listed(SHOWS, name)])


@cache
def _words_that_may(name: str) -> frozenset[str]:
    return frozenset([name, *_listed(MAY_SHOW, name)])


def _listed(words: dict[str, str], name: str) -> list[str]:
    return words[name].split(", ") if name in words else []


@cache
def _pairs() -> frozenset[str]:
    """Names and words of two words."""
    words = {word for name in COCO_NAMES for word in _words_that_show(name)}
    return frozenset(word for word in words if " " in word)


def _said(caption: str) -> set[str]:
    """The lower-case words of a caption, of those with hyphens the last part; a pair that is one name is one: a hot dog is no dog."""
    words = [word.rpartition("-")[2] for word in re.findall(r"[a-z]+(?:-[a-z]+)*", caption.lower())]
    said, at = set(), 0
    while at < len(words):
        length = 2 if " ".join(words[at : at + 2]) in _pairs() else 1
        said.add(" ".join(words[at : at + length]))
        at += length
    return said
