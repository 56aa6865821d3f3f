"""Settings of a command, read from words: a dataclass is the form, its docstrings are the help.

    command, given = read(Fit, "kshot fit", ["photos", "--out", "a.kshot"])
    text = explained(Fit, "kshot fit", width=80)

A field is an option of its name (`data_root` is --data-root); a dataclass or a dict in a field lends its own. A field
that is `Annotated[..., POSITIONAL]` takes the words that belong to no option, one that is `HIDDEN` takes none. Types
are those of JSON and Path, choices (Literal), tuples of them, and `| None`. What cannot be read is an `InputError` of
one line that says what to type.

Idea and form are tyro's; this one needs the standard library alone, and words its own errors.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

__all__ = ["FEW", "HIDDEN", "MISSING", "POSITIONAL", "InputError", "Option", "explained", "options", "read", "section"]

Kind = TypeVar("Kind")

POSITIONAL, HIDDEN = "positional", "hidden"
MISSING: Any = dataclasses.MISSING
FEW = 12
"""Up to this many settings, --help shows them all; of more the ten that the command names first."""
_FIRST = 10


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what, and what to type."""


class Option(NamedTuple):
    """A setting.

    Attributes:
        path: names of fields, from the command's dataclass to the setting.
        hint: its type.
        default: `MISSING` where it has to be given.
        about: what it is.
        group: above it in the help.
        positional: it has no flag.
    """

    path: tuple[str, ...]
    hint: Any
    default: Any
    about: str
    group: str
    positional: bool

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--" + self.path[-1].replace("_", "-")

    @property
    def shown(self) -> str:
        """As errors and the usage name it."""
        return self.path[-1].upper().replace("_", "-") if self.positional else self.flag

    @property
    def several(self) -> bool:
        """It takes any number of words."""
        return typing.get_origin(_bare(self.hint)) is tuple


# The settings of a dataclass


def options(
    kind: type, default: Any = MISSING, unused: Collection[str] = (), about: Mapping[str, str] | None = None
) -> list[Option]:
    """The settings of a command, in the order of its fields.

    Args:
        kind: the dataclass; the `heading` of a class stands above its fields in the help.
        default: an object of it whose values are the defaults.
        unused: names of fields that are left out.
        about: what the settings in a dict are, by name.
    """
    return list(_walk(kind, default, unused, about or {}, (), "Settings"))


def _walk(
    kind: type, default: Any, unused: Collection[str], more: Mapping[str, str], above: tuple[str, ...], group: str
) -> Iterator[Option]:
    hints, about = typing.get_type_hints(kind, include_extras=True), _about(kind)
    for field in dataclasses.fields(kind):
        marks: tuple[Any, ...] = ()
        hint, name = hints[field.name], field.name
        if typing.get_origin(hint) is typing.Annotated:
            hint, *rest = typing.get_args(hint)
            marks = tuple(rest)
        if HIDDEN in marks or name in unused:
            continue
        if default is not MISSING:
            value = getattr(default, name)
        else:
            value = _default(field)
        path, own = (*above, name), _group(kind, name, group)
        if dataclasses.is_dataclass(hint):
            inner = type(value) if value is not MISSING else typing.cast(Any, hint)
            yield from _walk(inner, value, unused, more, path, getattr(inner, "heading", own))
        elif typing.get_origin(hint) is dict:
            for key, v in (value if isinstance(value, dict) else {}).items():
                yield Option((*path, key), type(v), v, more.get(key, ""), own, False)
        else:
            yield Option(path, hint, value, about.get(name, ""), own, POSITIONAL in marks)


def _default(field: dataclasses.Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if isinstance(factory, dataclasses._MISSING_TYPE) else factory()


def _group(kind: type, name: str, above: str) -> str:
    """The heading of the class that a field was first written in."""
    for base in reversed(kind.__mro__):
        if name in vars(base).get("__annotations__", {}):
            return vars(base).get("heading", above)
    return above


def _about(kind: type) -> dict[str, str]:
    """Setting -> what it is: of "Attributes:" in a docstring, or the text below a field, of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= section(base, "Attributes") or _below(base)
    return found


def section(kind: Any, title: str) -> dict[str, str]:
    """Name -> text, of a section of a docstring."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    part = re.search(rf"^{title}:\n((?:(?: .*)?\n?)*)", text, re.M)
    found = re.findall(r"^    ([\w, ]+): (.*(?:\n(?:        .*)?)*)", part[1], re.M) if part else []
    return {name: " ".join(words.split()) for names, words in found for name in names.split(", ")}


def _below(kind: type) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError):  # made at run time
        return {}
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


# Words


def read(
    kind: type[Kind], prog: str, words: Sequence[str], default: Any = MISSING, unused: Collection[str] = ()
) -> tuple[Kind, set[str]]:
    """A dataclass from words, and the names of the settings that were given.

    Args:
        kind: the dataclass.
        prog: the command, named in errors.
        words: what stands behind it.
        default, unused: see `options`.

    Raises:
        InputError: in one line, with what to type.
    """
    own = options(kind, default, unused)
    flags = {option.flag: option for option in own if not option.positional}
    values: dict[tuple[str, ...], Any] = {}
    loose: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            loose, left = [*loose, *left], []
        elif not _is_flag(word):
            loose.append(word)
        else:
            flag, equals, value = word.partition("=")
            option, off = _flag(flag.replace("_", "-"), flags, prog, unused)
            values[option.path] = _taken(option, off, [value] if equals else None, left)
    _place(loose, [option for option in own if option.positional], values, prog, "--out" in flags)
    for option in own:
        if option.path not in values and option.default is MISSING:
            raise InputError(f"{option.shown} is missing: type '{usage(prog, own)}'")
    return _made(kind, default, values, ()), {path[-1] for path in values}


def _is_flag(word: str) -> bool:
    return re.match(r"--\w|-[a-zA-Z]", word) is not None


def _flag(flag: str, flags: dict[str, Option], prog: str, unused: Collection[str]) -> tuple[Option, bool]:
    """The option of a flag, and whether it is switched off."""
    if flag in flags:
        return flags[flag], False
    if flag.startswith("--no-") and (option := flags.get(f"--{flag[5:]}")) and _bare(option.hint) is bool:
        return option, True
    if flag[2:].replace("-", "_") in unused:
        raise InputError(f"{flag} changes nothing in this run: leave it out")
    dashes = f"--{flag.lstrip('-')}"
    near = [dashes] if dashes in flags else difflib.get_close_matches(dashes, [*flags, "--help", "--help-all"], 2, 0.7)
    if near:
        raise InputError(f"there is no {flag}: did you mean {' or '.join(near)}?")
    every = "--help-all" if len(flags) > FEW else "--help"
    raise InputError(f"there is no {flag} here: type '{prog} {every}' for the settings")


def _taken(option: Option, off: bool, given: list[str] | None, left: list[str]) -> Any:
    """The value of an option, of its own word or of those that follow."""
    hint = _bare(option.hint)
    if hint is bool:
        if given is not None:
            raise InputError(f"{option.flag} takes no value: type {option.flag} or --no-{option.flag[2:]}")
        return not off
    if given is None:
        given = []
        while left and not _is_flag(left[0]) and left[0] != "--" and (option.several or not given):
            given.append(left.pop(0))
    if not given or given == [""]:
        raise InputError(f"{option.flag} needs a value: {_wanted(option)}")
    return _several(option, given) if option.several else _one(option, hint, given[0])


def _place(
    loose: list[str], positional: list[Option], values: dict[tuple[str, ...], Any], prog: str, out: bool
) -> None:
    """Give words to the options without a flag, in their order."""
    rest = list(loose)
    for option in positional:
        if option.several:
            values[option.path], rest = tuple(_one(option, _inner(option.hint)[0], word) for word in rest), []
        elif rest:
            hint, word = _bare(option.hint), rest.pop(0)
            choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
            if word not in choices and (meant := next((other for other in rest if other in choices), None)):
                others = [word, *(other for other in rest if other != meant)]
                raise InputError(f"{meant} comes first: type '{prog} {' '.join([meant, *others])}'")
            values[option.path] = _one(option, hint, word)
    if rest:
        takes = " ".join(option.shown for option in positional)
        if out and ("out",) not in values:
            raise InputError(f"{rest[0]!r} is one too many: did you mean --out {rest[0]}?")
        raise InputError(
            f"{rest[0]!r} is one too many: type '{prog} {takes}'".rstrip() + ", and settings as --name value"
        )


def _several(option: Option, words: list[str]) -> tuple[Any, ...]:
    kinds = _inner(option.hint)
    if len(kinds) > 1 and len(kinds) != len(words):
        raise InputError(f"{option.flag} {' '.join(words)}: {_wanted(option)}")
    kinds = kinds if len(kinds) > 1 else kinds * len(words)
    return tuple(_one(option, kind, word) for kind, word in zip(kinds, words, strict=True))


def _one(option: Option, hint: Any, word: str) -> Any:
    """A value from a word.

    Raises:
        InputError: what it has to be.
    """
    if word.lower() == "none" and type(None) in typing.get_args(option.hint):
        return None
    if typing.get_origin(hint) is Literal:
        choices = [str(choice) for choice in typing.get_args(hint)]
        if word in choices:
            return typing.get_args(hint)[choices.index(word)]
        near = difflib.get_close_matches(word.lower(), choices, 1, 0.6)
        hint_of = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{_named(option, word)}: {hint_of}{'T' if near else 't'}here are {', '.join(choices)}")
    made: dict[Any, Callable[[str], Any]] = {int: int, float: float, Path: _path, str: str}
    try:
        value = made[hint](word)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"{_named(option, word)}: {_wanted(option)}") from None
    return value


def _path(word: str) -> Path:
    if not word or "\0" in word:
        raise ValueError
    return Path(word)


def _named(option: Option, word: str) -> str:
    return repr(word) if option.positional else f"{option.flag} {word}"


def _wanted(option: Option) -> str:
    """What an option takes, with an example."""
    hint, default = _bare(option.hint), option.default
    kinds = _inner(option.hint) if option.several else (hint,)
    words = {int: "a whole number", float: "a number", str: "a word", Path: "a file or folder"}
    kind = kinds[0]
    what = words.get(kind, "")
    if typing.get_origin(kind) is Literal:
        what = "one of " + ", ".join(map(str, typing.get_args(kind)))
    if len(kinds) > 1:
        what = f"{len(kinds)} of them, each {what}"
    elif option.several:
        what += ", or several"
    known = default not in (MISSING, None, "", ()) and not isinstance(default, bool)
    text = f"give {what}"
    return f"{text}, for instance {_written(default)}" if known and not option.positional else text


def _made(kind: type, default: Any, values: dict[tuple[str, ...], Any], above: tuple[str, ...]) -> Any:
    """The dataclass with the values of `above` and below in it."""
    depth, own = len(above), {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path = (*above, field.name)
        under = {p: v for p, v in values.items() if p[: depth + 1] == path}
        if default is not MISSING:
            value = getattr(default, field.name)
        else:
            value = _default(field)
        if path in under:
            own[field.name] = under[path]
        elif under and isinstance(value, dict):
            own[field.name] = {**value, **{p[-1]: v for p, v in under.items()}}
        elif under:
            inner = type(value) if value is not MISSING else hints[field.name]
            own[field.name] = _made(inner, value, under, path)
        elif value is not MISSING:
            own[field.name] = value
    return kind(**own)


# Types


def _bare(hint: Any) -> Any:
    """A type without `| None`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    return hint


def _inner(hint: Any) -> tuple[Any, ...]:
    """The types in a tuple; one, where any number of it may come."""
    parts = typing.get_args(_bare(hint))
    return parts[:1] if parts[-1] is Ellipsis else parts


def _meta(hint: Any) -> str:
    """What stands for a value in the help."""
    hint = _bare(hint)
    if typing.get_origin(hint) is tuple:
        inner = [_meta(part) for part in _inner(hint)]
        return " ".join(inner) if len(inner) > 1 else f"{''.join(inner)} ..."
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    return {int: "N", float: "X", Path: "PATH", str: "WORD"}.get(hint, "")


def _written(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, tuple | list):
        return " ".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# Help


def usage(prog: str, own: Sequence[Option]) -> str:
    """The command in a line."""
    words = [prog]
    for option in own:
        needed = option.default is MISSING
        if option.positional:
            name = f"{option.shown} ..." if option.several else option.shown
            words.append(name if needed else f"[{name}]")
        elif needed:
            words.append(f"{option.flag} {_meta(option.hint)}")
    return " ".join(
        [*words, "[settings]"] if any(not o.positional and o.default is not MISSING for o in own) else words
    )


def _width() -> int:
    """Of help, in columns."""
    return min(max(shutil.get_terminal_size().columns, 50), 120)


def explained(
    kind: type,
    prog: str,
    default: Any = MISSING,
    unused: Collection[str] = (),
    about: Mapping[str, str] | None = None,
    *,
    every: bool = False,
    first: Sequence[str] = (),
) -> str:
    """The help of a command.

    Args:
        kind, default, unused, about: see `options`.
        prog: the command.
        every: show all settings; else, where they are many, those that people change first.
        first: their names, the most wanted first; those that there are not are passed over.
    """
    own, wide = options(kind, default, unused, about), _width()
    names = [option.path[-1] for option in own if not option.positional]
    some = [name for name in first if name in names][:_FIRST] if len(names) > FEW and not every else names
    paragraphs = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:")[0].split("\n\n")
    lines = [f"usage: {usage(prog, own)}", ""]
    for text in paragraphs:
        lines += [*textwrap.wrap(" ".join(text.split()), wide, break_on_hyphens=False), ""]
    groups: dict[str, list[Option]] = {}
    for option in own:
        if option.positional or option.path[-1] in some:
            groups.setdefault("What it takes" if option.positional else option.group, []).append(option)
    for title, members in groups.items():
        lines.append(f"{title}:")
        for option in members:
            lines += _entry(option, wide)
        lines.append("")
    if hidden := len(names) - len(some):
        lines.append(f"{hidden} more settings: {prog} --help-all")
    return "\n".join(lines).rstrip()


def _entry(option: Option, wide: int) -> list[str]:
    """An option in the help: name, value, what it is, its default; nothing is cut."""
    hint, default = _bare(option.hint), option.default
    head = option.shown if option.positional else f"{option.flag} {_meta(hint)}".rstrip()
    about = option.about
    if hint is bool:
        head = f"{option.flag}, --no-{option.flag[2:]}" if default is not False else option.flag
        known = f"(default: {'on' if default else 'off'})"
    elif default is MISSING:
        known = "" if option.positional else "(has to be given)"
    elif default in (None, "", ()):
        known, about = "", re.sub(r"\b(where )?None\b", "without it", about)
    else:
        known = f"(default: {_written(default)})"
    text = f"{about} {known}".strip()
    left = 24
    wrapped = textwrap.wrap(text, wide - left - 2, break_on_hyphens=False, break_long_words=False) or [""]
    if len(head) + 2 > left:
        heads = textwrap.wrap(head, wide - 2, subsequent_indent="    ", break_on_hyphens=False)
        return [*(f"  {part}" for part in heads), *(" " * (left + 2) + part for part in wrapped)]
    first, *rest = wrapped
    return [f"  {head:<{left}}{first}".rstrip(), *(" " * (left + 2) + part for part in rest)]
