"""Which class of a classifier a label means, and what is said of it."""

import pytest

from sfvlm.evaluate.classes import Classes, absent_classes, mapped_labels, resolve_classes
from sfvlm.evaluate.texts import imagenet_names

WNIDS = ("n01440764", "n02102040", "n03417042")
NUMBERS = tuple(map(str, range(12)))
LETTERS = tuple("abcdefghijkl")


def resolved(own, names=None, outputs=None, ids=None, indices=None):
    remarks: list[str] = []
    found = resolve_classes(own, Classes(names=names, ids=ids, indices=indices), outputs, remarks)
    assert found == resolve_classes(own, Classes(names=names, ids=ids, indices=indices), outputs)
    return found[1], " ".join(remarks)


def test_names_in_another_order_than_the_folders_are_found_by_name():
    indices, said = resolved(("cat", "dog", "eel"), ("eel", "cat", "dog"))
    assert indices == (1, 2, 0) and "found among --class-names by what they are called: 'cat' is 'cat'" in said
    assert resolved(("cat", "dog"), ("cat", "dog")) == (None, "")


def test_names_are_the_same_whatever_their_case_and_signs():
    indices, _ = resolved(("English_springer", "GAS-PUMP"), ("gas pump", "tench", "English springer"))
    assert indices == (2, 0)
    assert resolved(("C", "C++"), ("C++", "C"))[0] == (1, 0)  # as they are written, before anything else


def test_numbers_before_names_of_folders_are_no_part_of_the_name():
    birds = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    assert resolved(birds, ("Laysan Albatross", "Black-footed Albatross"))[0] == (1, 0)
    assert resolved(("n02085620-Chihuahua", "n02085782-pug"), ("pug", "Chihuahua"))[0] == (1, 0)
    assert "as they are, such as '001.Black_footed_Albatross'" in resolved(birds)[1]


def test_a_class_that_several_names_could_mean_is_refused():
    with pytest.raises(ValueError, match="'crane' of the photos is called like several"):
        resolved(("crane", "dog"), ("crane", "dog", "crane"))


def test_folders_and_names_that_contradict_each_other_are_refused():
    with pytest.raises(
        ValueError, match=r"contradict each other: 'cat' is class 0 of the photos and 1 of the names, and 'eel'"
    ):
        resolved(("cat", "dog", "eel"), ("dog", "cat", "snake"))
    indices, said = resolved(("cat", "golden", "eel"), ("cat", "golden retriever", "snake"))  # at their own places
    assert indices is None and "in their order" in said


def test_names_for_folders_that_are_called_otherwise_go_by_their_order_which_is_said():
    indices, said = resolved(WNIDS, ("fish", "dog", "pump"))
    assert indices is None and "'n01440764' is 'fish', 'n03417042' is 'pump'" in said
    with pytest.raises(ValueError, match=r"sorted as text \(class1, class10, \.\.\.\).*\(class1, class2, \.\.\.\)"):
        resolved(tuple(sorted(f"class{number}" for number in range(1, 13))), LETTERS)
    assert resolved(tuple(f"class{number:02d}" for number in range(12)), LETTERS)[0] is None


def test_wordnet_ids_beside_the_names_decide():
    indices, said = resolved(WNIDS, ("pump", "fish", "dog"), ids=(WNIDS[2], WNIDS[0], WNIDS[1]))
    assert indices == (1, 2, 0) and "'n01440764' is 'fish'" in said


def test_numbered_folders_are_places_among_the_names():
    assert resolved(NUMBERS, LETTERS)[0] is None
    assert resolved(("0", "2", "11"), LETTERS)[0] == (0, 2, 11)
    indices, said = resolved(("1", "2", "12"), LETTERS)
    assert indices == (0, 1, 11) and "counted from 1: 1 is 'a', 12 is 'l'" in said
    indices, said = resolved(("100", "200"), ("x", "y"))
    assert indices is None and "in the order of their numbers: 100 is 'x'" in said
    assert resolved(("01", "2"), ("x", "y"), ids=("1", "2"))[0] is None
    with pytest.raises(ValueError, match=r"2 classes, called by the numbers 3 to 5.*are 12: say with --class-indices"):
        resolved(("3", "5"), LETTERS)


def test_numbered_folders_without_names_are_named_by_their_numbers_which_is_said():
    assert "The classes are called by numbers such as 0" in resolved(NUMBERS)[1]


def test_a_classifier_of_its_own_says_whose_numbers_labels_are():
    assert "taken for the numbers of the teacher's 9 classes" in resolved(None, outputs=9)[1]
    assert "'cat' is its class 0" in resolved(("cat", "dog"), outputs=2)[1]
    assert "--class-names are not used" in resolved(None, ("a", "b"), outputs=2)[1]
    assert "counted from 1: 1 is 'class 0'" in resolved(("1", "2"), outputs=2)[1]


def test_labels_without_names_are_imagenets_which_is_said():
    indices, said = resolved(None)
    assert indices is None and f"ImageNet's 1000 classes (0 is {imagenet_names()[0]!r})" in said


def test_labels_count_from_one_where_the_names_do():
    indices, said = resolved(None, ("cat", "dog"), ids=("1", "2"))
    assert indices == (-1, 0, 1) and "counted from 1" in said
    assert mapped_labels((1, 2, 2), indices, 2).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="label 0, for which no class is given"):
        mapped_labels((0, 1), indices, 2)
    with pytest.raises(
        ValueError, match=r"from 1 to 2, but the classifier has 2 classes.* counted from 1, let --class-names say so"
    ):
        mapped_labels((1, 2), None, 2)


def test_names_that_differ_in_case_alone_are_said():
    assert "nearly the same name" in resolved(("Cat", "cat", "dog"))[1]
    assert resolved(("a", "b"))[1] == ""


def test_the_order_of_class_indices_is_said_where_there_are_two():
    assert "by number: 2, 10" in resolved(("2", "10"), indices=(5, 6))[1]


def test_classes_without_photos_are_said():
    assert absent_classes((0, 2), ("a", "b", "c", "d"), None, None) == [
        "2 of the 4 classes have no photo among the 2 measured, the first of them number 1 ('b')."
    ]
    assert absent_classes((0, 1), None, (4, 7), 9) == [
        "7 of the 9 classes have no photo among the 2 measured, the first of them number 0."
    ]
    assert absent_classes((1, 0), ("a", "b"), None, None) == []


@pytest.mark.parametrize(
    ("own", "names", "indices"),
    [
        (("cat", "dog"), ("dog", "cat", "eel"), (0, 1)),
        (("n01440764", "n02102040"), None, (217, 0)),
        (("0", "217", "482"), None, (482, 217, 0)),
        (("tench", "church"), None, (497, 0)),
    ],
)
def test_class_indices_that_contradict_what_classes_are_called_are_refused(own, names, indices):
    with pytest.raises(
        ValueError, match=f"--class-indices says that the photos' class '{own[0]}' is class {indices[0]}"
    ):
        resolved(own, names, indices=indices)
    assert resolved(("cat", "dog"), ("dog", "cat", "eel"), indices=(1, 0))[0] == (1, 0)


def test_classes_sorted_as_text_are_not_taken_for_a_classifiers_in_their_order():
    own = tuple(sorted(f"class_{number}" for number in range(12)))
    with pytest.raises(ValueError, match=r"sorted as text .* and the teacher's classes may be sorted by number"):
        resolved(own, outputs=12)
    assert (
        "those of the photos sorted as text: class_0, class_1, "
        in resolved(own, outputs=12, indices=tuple(range(12)))[1]
    )


def test_a_label_of_any_size_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="The labels go from 1 to 99999999999999999999999, but the classifier has 10"):
        mapped_labels([1, 99999999999999999999999], None, 10)
