"""Which script a class is written in: so that "unseen scripts" is checked and not only claimed.

    unseen(["glyphs/Lao/ກ U+0E81", "glyphs/Nko/ߊ U+07CA"], trained=["omniglot/N_Ko/character01"])  # the first

A script counts as the same whatever it is written with: N'Ko by hand (Omniglot's N_Ko) and in print (glyphs' Nko).
Scripts that share letters are one family: who has learned Latin letters has met most Greek capitals, and Lisu's letters
are Latin capitals, turned. Source: the alphabets' own names (Omniglot), Unicode's names of characters (glyphs), and the
Unicode Standard's chapters on Coptic, Lisu and Old Italic for what these share.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["family", "unseen"]

_OMNIGLOT = {  # alphabets whose script has another name, or is shared; any other is a script of its own
    "Anglo-Saxon_Futhorc": "runes",
    "Asomtavruli_(Georgian)": "Georgian",
    "Mkhedruli_(Georgian)": "Georgian",
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": "Canadian syllabics",
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": "Canadian syllabics",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": "Canadian syllabics",
    "Burmese_(Myanmar)": "Burmese",
    "Cyrillic": "Latin, Greek and Cyrillic",
    "Old_Church_Slavonic_(Cyrillic)": "Latin, Greek and Cyrillic",
    "Greek": "Latin, Greek and Cyrillic",
    "Latin": "Latin, Greek and Cyrillic",
    "Japanese_(hiragana)": "hiragana",
    "Japanese_(katakana)": "katakana",
    "Malay_(Jawi_-_Arabic)": "Arabic",
    "N_Ko": "N'Ko",
    "Syriac_(Estrangelo)": "Syriac",
    "Syriac_(Serto)": "Syriac",
}
_GLYPHS = {  # the first word of a character's Unicode name
    "Arabic": "Arabic",
    "Arabic-Indic": "Arabic",
    "Armenian": "Armenian",
    "Canadian": "Canadian syllabics",
    "Coptic": "Latin, Greek and Cyrillic",
    "Cyrillic": "Latin, Greek and Cyrillic",
    "Digit": "digits",
    "Extended": "Arabic",
    "Georgian": "Georgian",
    "Greek": "Latin, Greek and Cyrillic",
    "Hebrew": "Hebrew",
    "Lao": "Lao",
    "Latin": "Latin, Greek and Cyrillic",
    "Lisu": "Latin, Greek and Cyrillic",
    "Nko": "N'Ko",
    "Ogham": "Ogham",
    "Old": "Latin, Greek and Cyrillic",
    "Tifinagh": "Tifinagh",
}
_SETS: dict[str, dict[str, str]] = {
    "omniglot": _OMNIGLOT,
    "glyphs": _GLYPHS,
    "mnist": dict.fromkeys("0123456789", "digits"),
}


def family(name: str) -> str | None:
    """The script, or family of scripts, of a class "DATA SET/CLASS"; None where the data set is not one of characters.

    >>> family("omniglot/N_Ko/character01"), family("glyphs/Nko/ߊ U+07CA"), family("mnist/7")
    ("N'Ko", "N'Ko", 'digits')
    >>> family("grocery/Lemon") is None
    True
    """
    data, _, rest = name.partition("/")
    own, first = _SETS.get(data), rest.partition("/")[0]
    return None if own is None else own.get(first, first)


def unseen(names: Iterable[str], trained: Iterable[str]) -> list[str]:
    """Those of the classes whose script no class of `trained` is written in.

    Args:
        names: "DATA SET/CLASS", each.
        trained: the same.

    Raises:
        ValueError: a data set among them is not one of characters, so that it cannot be known.
    """
    names, trained = list(names), list(trained)
    if strange := sorted({name.partition("/")[0] for name in (*names, *trained) if family(name) is None}):
        raise ValueError(
            f"scripts are known of omniglot, glyphs and mnist, not of {', '.join(strange)}: leave out --unseen-scripts"
        )
    held = {family(name) for name in trained}
    return [name for name in names if family(name) not in held]
