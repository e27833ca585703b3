import pytest
from curate.datasets.targets import CAPTION, LABEL, MAX_LABEL, MAX_TARGET_BYTES, Classes
from curate.errors import ExampleError


def index(text, *names, **options):
    return Classes(names).index(text, **options)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["2", "0", "1"], ["2", "0", "1"]),
        (["1", "2", "3"], ["1", "3", "2"]),
        (["01", "02", "03"], ["03", "01"]),
        (["1999", "2024", "-5"], ["2024", "-5"]),
        (["cat", "dog", "10"], ["10", "dog"]),
        ([str(i) for i in range(20)], ["3", "19"]),
        (sorted(str(i) for i in range(20)), ["3", "19", "10"]),
    ],
)
def test_a_label_that_is_a_classes_name_is_that_class(names, labels):
    assert [index(label, *names) for label in labels] == [names.index(label) for label in labels]


def test_where_all_names_are_numbers_nothing_else_is_a_label():
    assert index("2.0", "1", "2", "3") == 1
    for label in ("0", "4", "0.5e1", "cat"):
        with pytest.raises(ExampleError, match=rf"label '{label}' is not one of the classes, whose names are numbers"):
            index(label, "1", "2", "3")


def test_a_number_that_is_also_another_classes_name_is_refused_and_in_a_folders_name_it_is_the_name():
    with pytest.raises(ExampleError, match="label '2' is the name of class 1 and the number of another"):
        index("2", "cat", "2", "dog")
    assert index("2", "cat", "2", "dog", is_folder=True) == 1
    assert index("0", "cat", "2", "dog") == 0
    assert index("2", "cat", "dog", "2") == 2


def test_two_classes_of_one_name_have_their_numbers():
    """ImageNet has two cranes."""
    assert [index(label, "crane", "dog", "crane") for label in ("0", "1", "2", "dog")] == [0, 1, 2, 1]
    with pytest.raises(ExampleError, match="label 'crane' is the name of two classes"):
        index("crane", "crane", "dog", "crane")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *(("True", 1), ("false", 0), (str(MAX_LABEL), MAX_LABEL), ("3", 3), ("+3", 3), ("007", 7), ("3.0", 3)),
        *(("3.000000000000000000e+00", 3), ("1e1", 10), ("-0.0", 0)),
    ],
)
def test_whole_numbers_and_truth_values_are_labels(text, label):
    assert index(text) == label


@pytest.mark.parametrize("names", [(), ("cat", "dog", "bird")])
@pytest.mark.parametrize(
    "text",
    [
        "3.7",
        "inf",
        "-inf",
        "nan",
        "1e300",
        str(10**30),
        "9" * 5000,
        "-1",
        str(MAX_LABEL + 1),
        "1_0",
        "0x1",
        "٣",
        "[1]",
        "None",
    ],
)
def test_what_no_class_can_have_is_one_failure(text, names):
    with pytest.raises(ExampleError) as caught:
        index(text, *names)
    assert caught.value.stage == "target"
    assert caught.value.reason.startswith("label ")
    assert len(caught.value.reason) < 200


def test_the_names_that_a_file_gives_to_its_numbers_say_what_they_mean():
    meanings = ("dog", "cat", "3")
    assert Classes(["cat", "3", "dog"]).index_of_number("0", meanings) == 2
    assert Classes(["cat", "3", "dog"]).index_of_number("2", meanings) == 1
    assert Classes(()).index_of_number("2", meanings) == 2
    assert Classes(["Hund", "Katze", "drei"]).index_of_number("1", meanings) == 1  # other words for the same classes
    for names, label, told in (
        (["cat", "dog"], "2", "label 2 is '3' in the file's metadata, which is none of the classes"),
        (["cat", "3", "dog"], "-1", "label -1 is outside the 3 names"),
        ([], "3", "label 3 is outside the 3 names"),
    ):
        with pytest.raises(ExampleError, match=told):
            Classes(names).index_of_number(label, meanings)


def test_a_target_is_not_read_without_end():
    fits = b"a" * MAX_TARGET_BYTES
    assert CAPTION.parse(fits, "txt", Classes(())) == fits.decode()
    with pytest.raises(ExampleError, match="txt has 1,048,577 bytes, at most 1,048,576 are read"):
        CAPTION.parse(fits + b"a", "txt", Classes(()))
    with pytest.raises(ExampleError, match="no label"):
        LABEL.parse(None, "cls", Classes(()))


def test_a_mark_before_a_target_and_nuls_behind_it_are_not_part_of_it():
    assert CAPTION.parse(b"\xef\xbb\xbfa dog\r\n", "txt", Classes(())) == "a dog"
    assert CAPTION.parse(b"a dog\0\0", "text", Classes(())) == "a dog"
    assert LABEL.parse(b"\xef\xbb\xbf2\n", "cls", Classes(())) == 2
    assert LABEL.parse(b"dog\0", "label", Classes(["cat", "dog"])) == 1
    with pytest.raises(ExampleError, match="txt is empty"):
        CAPTION.parse(b"\xef\xbb\xbf \n", "txt", Classes(()))
