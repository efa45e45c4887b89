"""What `fedsr --help` and `fedsr COMMAND --help` print, made from the functions' signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping

from fedsr_monai.commands.arguments import option, parameter_type

WIDTH = 100
METAVARS = {int: "N", float: "X", str: "TEXT"}


def overview(commands: Mapping[str, Callable]) -> str:
    """Return the names of all commands with their summaries, one line per command."""
    rows = [f"  {name:<13}{sections(function)['summary'].split(chr(10))[0]}" for name, function in commands.items()]
    return "\n".join(
        [
            "fedsr: federated registration and segmentation of brain MRI with one labelled scan per site",
            "",
            "usage: fedsr COMMAND [arguments]",
            "",
            *rows,
            "",
            "`fedsr COMMAND --help` explains the arguments of a command and gives an example.",
            "A command that was stopped resumes when it is run again with the same arguments.",
        ]
    )


def command_help(name: str, function: Callable) -> str:
    """Return the help of one command: usage, purpose, arguments with their defaults, and an example."""
    parts = sections(function)
    needed: list[str] = []
    optional: list[str] = []
    for key, parameter in inspect.signature(function).parameters.items():
        (needed if parameter.default is parameter.empty else optional).append(key)
    first_is_list = needed and parameter_type(function, needed[0])[1]
    positional = [f"{key.upper()} ..." if first_is_list else key.upper() for key in needed[:1]]
    usage = " ".join(["usage: fedsr", name, *positional, *(_usage(function, key) for key in needed[1:])])
    lines = [usage + (" [options]" if optional else ""), "", _wrap(parts["summary"])]
    if parts.get("text"):
        lines += ["", _wrap(parts["text"])]
    described = arguments(parts.get("args", ""))
    rows = [
        (key.upper() if key in needed[:1] else _usage(function, key), described[key] + _default(function, key))
        for key in needed + optional
    ]
    if rows:
        column = min(max(len(left) for left, _ in rows) + 4, 34)
        lines += ["", "arguments:", *(_row(left, right, column) for left, right in rows)]
    if parts.get("example"):
        lines += ["", "example:", textwrap.indent(parts["example"], "  ")]
    return "\n".join(lines)


def sections(function: Callable) -> dict[str, str]:
    """Split a docstring into summary, text, args and example."""
    document = inspect.getdoc(function) or ""
    opening, *rest = re.split(r"^(Args|Example):+$", document, flags=re.MULTILINE)
    summary, _, text = opening.strip().partition("\n\n")
    parts = {"summary": summary, "text": text.strip()}
    for head, body in zip(rest[::2], rest[1::2], strict=True):
        parts[head.lower()] = textwrap.dedent(body).strip()
    return parts


def arguments(text: str) -> dict[str, str]:
    """Return the descriptions in the `Args` section of a docstring, by name."""
    found = re.findall(r"^(\w+): (.*(?:\n[ ]+.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(body.split()) for name, body in found}


def _usage(function: Callable, name: str) -> str:
    kind, is_list = parameter_type(function, name)
    if kind is bool:
        return option(name)
    return f"{option(name)} {METAVARS[kind]}{' ...' if is_list else ''}"


def _default(function: Callable, name: str) -> str:
    default = inspect.signature(function).parameters[name].default
    if default is inspect.Parameter.empty or default is None or default is False:
        return ""
    return f" (default: {default})"


def _row(left: str, right: str, column: int) -> str:
    head = f"  {left}".ljust(column)
    gap = "\n" + " " * column if len(head) > column else ""
    return (
        head
        + gap
        + textwrap.fill(right, WIDTH - column, break_on_hyphens=False, break_long_words=False).replace(
            "\n", "\n" + " " * column
        )
    )


def _wrap(text: str) -> str:
    return "\n\n".join(
        textwrap.fill(" ".join(part.split()), WIDTH, break_on_hyphens=False) for part in text.split("\n\n")
    )
