"""Which scripts training held: by names of alphabets and of Unicode characters, which nobody may forget to list."""

import pytest

from kshot import data
from kshot.data import glyphs, omniglot, scripts


def test_every_script_of_glyphs_is_listed():
    assert {name.title() for names in glyphs.SCRIPTS.values() for name in names} == set(scripts._GLYPHS)


def test_every_shared_alphabet_of_omniglot_is_listed():
    """An alphabet whose name holds a script's name is of that script."""
    known = {*scripts._GLYPHS, "Ko", "Cyrillic", "Georgian", "Arabic", "Canadian"}
    for name in omniglot.class_splits("lake")["trainval"] + omniglot.class_splits("lake")["test"]:
        words = set(name.split("/")[0].replace("(", "").replace(")", "").replace("-", "_").split("_"))
        held = {scripts._GLYPHS.get(word, "N'Ko" if word == "Ko" else "") for word in words & known}
        assert held <= {scripts.family(f"omniglot/{name}")}, name


@pytest.mark.parametrize(("splits", "left"), [("vinyals", {"Armenian", "Lao", "Ogham"}), ("lake", {"Lao", "Ogham"})])
def test_scripts_that_omniglots_training_characters_do_not_hold(splits, left):
    trained = [f"omniglot/{name}" for name in omniglot.class_splits(splits)["train"]]
    names = [f"glyphs/{script.title()}/x" for script in glyphs.SCRIPTS["test"]]
    assert {name.split("/")[1] for name in scripts.unseen(names, trained)} == left
    # Early Aramaic and others have no letters in glyphs, so all of these alphabets would be new to a run on glyphs
    back = scripts.unseen(trained, [f"glyphs/{script.title()}/x" for script in glyphs.SCRIPTS["train"]])
    assert not {"Latin", "Greek", "Cyrillic", "Malay_(Jawi_-_Arabic)"} & {name.split("/")[1] for name in back}
    assert "omniglot/Tifinagh/character01" in back


def test_letters_that_look_alike_are_one_family():
    assert scripts.unseen(["glyphs/Cyrillic/А U+0410", "glyphs/Lisu/ꓐ U+A4D0"], ["omniglot/Latin/character01"]) == []
    assert scripts.unseen(["mnist/7"], ["glyphs/Digit/7 U+0037"]) == []
    with pytest.raises(ValueError, match="not of grocery: leave out --unseen-scripts"):
        scripts.unseen(["grocery/Lemon"], ["glyphs/Latin/A U+0041"])


def test_the_banks_classes_have_scripts():
    for split in ("train", "val", "test"):
        bank = data.load("glyphs", split)
        assert all(scripts.family(f"{bank.name}/{name}") in scripts._GLYPHS.values() for name in bank.classes)
