"""From the words of a command line to the arguments of a function.

fire reads the values and makes the call. It lacks three things that people expect, which are here: an option that is not
there is refused by name before anything runs, `--sites a b c` is a list, and a path stays text even if it looks like a
number.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import re
import typing
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from fedsr_monai.errors import UserError

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
TRUTH = {"true": True, "false": False}


def parameter_type(function: Callable, name: str) -> tuple[type, bool]:
    """The type of a parameter without `| None`, and whether it is a list of that type."""
    hint = typing.get_type_hints(function)[name]
    plain = [part for part in typing.get_args(hint) if part is not NoneType] if NoneType in typing.get_args(hint) else [hint]
    if typing.get_origin(plain[0]) is list:
        return typing.get_args(plain[0])[0], True
    return plain[0], False


def wants_help(words: Sequence[str]) -> bool:
    return any(word in ("--help", "-h") for word in words)


def call(command: str, function: Callable[..., None], words: Sequence[str]) -> None:
    """Call `function` with the options and places that `words` give.

    Raises:
        UserError: an option is unknown, has no value or one of another type, or one that is needed is missing.
    """
    import fire  # only now: the help does without it

    given = read(command, function, words)
    missing = [name for name, parameter in _parameters(function).items() if parameter.default is parameter.empty and name not in given]
    if missing:
        raise UserError(f"{command} needs {option(missing[0])}: see `fedsr {command} --help`")
    text = [name for name in _parameters(function) if parameter_type(function, name) == (str, False)]
    parsed = fire.decorators.SetParseFns(**dict.fromkeys(text, str))(checked(function))
    fire.Fire(parsed, command=[f"--{name}={_literal(function, name, value)}" for name, value in given.items()])


def read(command: str, function: Callable, words: Sequence[str]) -> dict[str, Any]:
    """The text of each option given; a list for a parameter that is a list, which also takes all words before the first option."""
    parameters = _parameters(function)
    given: dict[str, Any] = {}
    words = list(words)
    places = _values(words)
    for name, value in _place(command, function, places).items():
        given[name] = value
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
        if is_list:
            if not values:
                raise UserError(f"{option(name)} has no value, expected one or more: see `fedsr {command} --help`")
            given[name] = given.get(name, []) + values
            continue
        if kind is bool and (not values or values[0].lower() not in TRUTH):
            values = ["true", *values]
        if not values:
            raise UserError(f"{option(name)} has no value, expected {EXPECTED[kind]}: see `fedsr {command} --help`")
        if len(values) > 1:
            raise UserError(_too_many(command, values[1]))
        given[name] = TRUTH[values[0].lower()] if kind is bool else values[0]
    return given


def _literal(function: Callable, name: str, value: Any) -> str:
    """The text from which fire makes this value; names in a list of numbers would be taken for text, which `checked` refuses."""
    kind, is_list = parameter_type(function, name)
    return f"[{','.join(value)}]" if is_list and kind is not str else str(value)


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _values(words: list[str]) -> list[str]:
    """Take the words up to the next option off `words`; a negative number is a value."""
    count = next((n for n, word in enumerate(words) if re.match(r"-(?![\d.])", word)), len(words))
    taken = words[:count]
    del words[:count]
    return taken


def _place(command: str, function: Callable, values: list[str]) -> dict[str, Any]:
    """Words without an option: all of them for a first parameter that is a list, else one for each parameter without a default."""
    names = [name for name, parameter in _parameters(function).items() if parameter.default is parameter.empty]
    if not values:
        return {}
    if names and parameter_type(function, names[0])[1]:
        return {names[0]: values}
    if len(values) > len(names):
        raise UserError(_too_many(command, values[len(names)]))
    return dict(zip(names, values))


def checked(function: Callable[..., None]) -> Callable[..., None]:
    """`function`, refusing values of another type than its signature names."""

    @functools.wraps(function)
    def wrapper(*places: Any, **options: Any) -> None:
        values = inspect.signature(function).bind(*places, **options).arguments
        for name, value in values.items():
            if value == _parameters(function)[name].default:
                continue
            kind, is_list = parameter_type(function, name)
            accepted = (int, float) if kind is float else kind
            for item in value if is_list else [value]:
                if not isinstance(item, accepted) or (isinstance(item, bool) and kind is not bool):
                    raise UserError(f"{option(name)}: found {item!r}, expected {EXPECTED[kind]}: correct it")
        function(**values)

    return wrapper


def option(name: str) -> str:
    return f"--{name}"


def _too_many(command: str, word: str) -> str:
    return f"{command} does not know what to do with '{word}': quote it if it belongs to the option before, see `fedsr {command} --help`"


def _unknown(command: str, word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word.lstrip("-").replace("-", "_"), names, n=1)
    hint = f"did you mean {option(near[0])}?" if near else f"expected one of {', '.join(map(option, names)) or 'none'}:"
    return f"{command} has no option {word}, {hint} see `fedsr {command} --help`"


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`ID=VALUE` texts as a mapping; a value is read as JSON, or else as the text that it is.

    Raises:
        UserError: a text has no equals sign.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--override: found {text!r}, expected ID=VALUE, for example learning_rate=0.0005: correct it")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values
