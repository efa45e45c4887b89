"""Turn the words of a command line into the arguments of a function.

fire reads the values and makes the call. This module adds three things that people expect and fire lacks: an unknown
option is refused by name before anything runs, `--sites a b c` gives a list, and a path stays text even if it looks
like a number.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import math
import re
import typing
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from fedsr_monai.errors import UserError

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
TRUTH = {"true": True, "false": False}


def parameter_type(function: Callable, name: str) -> tuple[type, bool]:
    """Return the type of a parameter without `| None`, and whether it is a list of that type."""
    hint = typing.get_type_hints(function)[name]
    optional = NoneType in typing.get_args(hint)
    plain = next(part for part in typing.get_args(hint) if part is not NoneType) if optional else hint
    if typing.get_origin(plain) is list:
        return typing.get_args(plain)[0], True
    return plain, False


def wants_help(words: Sequence[str]) -> bool:
    """Return whether the words of a command line ask for help."""
    return any(word in ("--help", "-h") for word in words)


def call(command: str, function: Callable[..., None], words: Sequence[str]) -> None:
    """Call `function` with the options and positional arguments in `words`.

    Raises:
        UserError: an option is unknown, is given twice, has no value or one of another type, or is missing.
    """
    import fire  # only now: the help does without it

    given = read(command, function, words)
    for name, parameter in _parameters(function).items():
        if parameter.default is parameter.empty and name not in given:
            raise UserError(option(name), "nothing", "a value: it is needed", _see_help(command))
    text = [name for name in _parameters(function) if parameter_type(function, name) == (str, False)]
    parsed = fire.decorators.SetParseFns(**dict.fromkeys(text, str))(checked(function))
    fire.Fire(parsed, command=[f"--{name}={_literal(function, name, value)}" for name, value in given.items()])


def read(command: str, function: Callable, words: Sequence[str]) -> dict[str, Any]:
    """Return the text of each option given, by name.

    An option that takes a list may be given several times, and its values add up; any other option may be given once.
    """
    parameters = _parameters(function)
    words = list(words)
    given = _positional(command, function, _values(words))
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        values = ([value] if equals else []) + _values(words)
        switched_off = name.removeprefix("no").removeprefix("_")
        if name not in parameters and switched_off in parameters and parameter_type(function, switched_off)[0] is bool:
            name, values = switched_off, ["false", *values]
        if not word.startswith("--") or name not in parameters:
            raise UserError(_unknown(command, word.partition("=")[0], list(parameters)))
        kind, is_list = parameter_type(function, name)
        if kind is bool and (not values or values[0].lower() not in TRUTH):
            values = ["true", *values]
        if not values:
            expected = f"one or more values ({EXPECTED[kind]})" if is_list else EXPECTED[kind]
            raise UserError(option(name), "no value", expected, _see_help(command))
        if is_list:
            given[name] = given.get(name, []) + values
            continue
        if name in given:
            raise UserError(option(name), "the option twice", "it once", "leave one of them out")
        if len(values) > 1:
            raise _too_many(command, values[1])
        given[name] = TRUTH[values[0].lower()] if kind is bool else values[0]
    return given


def _literal(function: Callable, name: str, value: Any) -> str:
    """Return the text from which fire makes this value.

    A name in a list of numbers stays a name, which `checked` refuses.
    """
    kind, is_list = parameter_type(function, name)
    return f"[{','.join(value)}]" if is_list and kind is not str else str(value)


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _values(words: list[str]) -> list[str]:
    """Take the words up to the next option off `words` and return them; a negative number is a value."""
    count = next((n for n, word in enumerate(words) if re.match(r"-(?![\d.])", word)), len(words))
    taken = words[:count]
    del words[:count]
    return taken


def _positional(command: str, function: Callable, values: list[str]) -> dict[str, Any]:
    """Assign the words before the first option.

    A first parameter that is a list takes all of them; else each parameter without a default takes one.
    """
    names = [name for name, parameter in _parameters(function).items() if parameter.default is parameter.empty]
    if not values:
        return {}
    if names and parameter_type(function, names[0])[1]:
        return {names[0]: values}
    if len(values) > len(names):
        raise _too_many(command, values[len(names)])
    return dict(zip(names, values))


def checked(function: Callable[..., None]) -> Callable[..., None]:
    """Return `function`, wrapped so that it refuses values whose type is not the one in its signature."""

    @functools.wraps(function)
    def wrapper(*positional: Any, **options: Any) -> None:
        values = inspect.signature(function).bind(*positional, **options).arguments
        for name, value in values.items():
            if value == _parameters(function)[name].default:
                continue
            kind, is_list = parameter_type(function, name)
            for item in value if is_list else [value]:
                if not _is_of(kind, item):
                    raise UserError(option(name), repr(item), EXPECTED[kind])
        function(**values)

    return wrapper


def _is_of(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def option(name: str) -> str:
    """Return a parameter's name as it is written on the command line."""
    return f"--{name}"


def _see_help(command: str) -> str:
    return f"see `fedsr {command} --help`"


def _too_many(command: str, word: str) -> UserError:
    fix = f"quote it if it belongs to the option before, or {_see_help(command)}"
    return UserError(command, f"'{word}' after a value that is complete", "an option", fix)


def _unknown(command: str, word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word.lstrip("-").replace("-", "_"), names, n=1)
    options = ", ".join(map(option, names)) or "none"
    hint = f"did you mean {option(near[0])}?" if near else f"the options are {options};"
    return f"unknown option {word} of fedsr {command}: {hint} {_see_help(command)}"


def parse_overrides(assignments: Sequence[str], name: str = "override") -> dict[str, Any]:
    """Parse the `ID=VALUE` texts of the option `name` into a mapping; a value that is not valid JSON stays text.

    Raises:
        UserError: a text has no equals sign, or an ID is given twice.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(option(name), repr(text), "ID=VALUE, for example learning_rate=0.0005")
        if key in values:
            raise UserError(option(name), f"{key} twice", "each ID once", "leave one of them out")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values
