from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsr_monai import commands
from fedsr_monai.cli import main
from fedsr_monai.commands.arguments import parameter_type, parse_overrides
from fedsr_monai.commands.help import arguments, sections
from fedsr_monai.commands.site_folders import expand_sites
from fedsr_monai.errors import UserError


@pytest.fixture
def command(monkeypatch):
    """Put a function among the commands as `probe`."""

    def put(function) -> None:
        monkeypatch.setitem(commands.COMMANDS, "probe", function)

    return put


def probe(
    sites: list[str],
    out: str,
    rounds: int = 3,
    share: float = 0.5,
    processes: bool = False,
    shape: list[int] | None = None,
) -> None:
    """A command of this test.

    Args:
        sites: site folders
        out: folder
        rounds: how many
        share: of something
        processes: a switch
        shape: three numbers

    Example:
        fedsr probe a --out b
    """
    print(json.dumps([sites, out, rounds, share, processes, shape]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a --out b", [["a"], "b", 3, 0.5, False, None]),
        ("a b/* c,d --out b", [["a", "b/*", "c,d"], "b", 3, 0.5, False, None]),
        ("--sites a b --out b --sites c", [["a", "b", "c"], "b", 3, 0.5, False, None]),
        ("--out=b --sites=a --rounds=7", [["a"], "b", 7, 0.5, False, None]),
        ("--processes --sites a --out b", [["a"], "b", 3, 0.5, True, None]),
        ("a --out b --no-processes", [["a"], "b", 3, 0.5, False, None]),
        ("a --out b --processes false", [["a"], "b", 3, 0.5, False, None]),
        ("a --out b --share 1", [["a"], "b", 3, 1, False, None]),
        ("a --out b --share -1e-3", [["a"], "b", 3, -0.001, False, None]),
        ("2024 1e3 --out 007", [["2024", "1e3"], "007", 3, 0.5, False, None]),
        ("it's --out (b,c)", [["it's"], "(b,c)", 3, 0.5, False, None]),
        ("a --out b --shape 32 40 32", [["a"], "b", 3, 0.5, False, [32, 40, 32]]),
        ("a --out b --shape 32,40,32", [["a"], "b", 3, 0.5, False, [32, 40, 32]]),
    ],
)
def test_values_arrive_as_the_signature_says(command, capsys, words, expected):
    command(probe)
    assert main(["probe", *words.split()]) == 0
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a --out b --roundz 3", "unknown option --roundz of fedsr probe: did you mean --rounds?"),
        ("a --out b --zzz", "unknown option --zzz of fedsr probe: the options are --sites, --out, --rounds, --share, "),
        ("a --out b -r 3", "unknown option -r of fedsr probe: the options are --sites, --out, --rounds, --share, "),
        ("a", "--out: found nothing, expected a value: it is needed; see `fedsr probe --help`"),
        ("--out b", "--sites: found nothing, expected a value: it is needed"),
        ("a --out", "--out: found no value, expected text; see `fedsr probe --help`"),
        ("--sites --out b", "--sites: found no value, expected one or more values (text)"),
        ("a --out b --rounds", "--rounds: found no value, expected a whole number"),
        ("a --out b --rounds many", "--rounds: found 'many', expected a whole number; correct it"),
        ("a --out b --rounds 2.5", "--rounds: found 2.5, expected a whole number"),
        ("a --out b --rounds True", "--rounds: found True, expected a whole number"),
        (
            "a --out b --rounds 3 --rounds 4",
            "--rounds: found the option twice, expected it once; leave one of them out",
        ),
        ("a --out b --processes --noprocesses", "--processes: found the option twice, expected it once"),
        ("a --out b --share half", "--share: found 'half', expected a number"),
        ("a --out b --share nan", "--share: found 'nan', expected a number"),
        ("a --out b --share 1e999", "--share: found inf, expected a number"),
        ("a --out b --shape 3 x", "--shape: found 'x', expected a whole number"),
        (
            "a --out b c",
            "probe: found 'c' after a value that is complete, expected an option; quote it if it belongs ",
        ),
        ("a --out b --processes yes", "probe: found 'yes' after a value that is complete, expected an option; "),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(command, capsys, words, message):
    command(probe)
    assert main(["probe", *words.split()]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(f"fedsr: {message}") and output.err.count("\n") == 1


def test_unknown_command(capsys):
    assert main(["federte"]) == 2
    assert capsys.readouterr().err == "fedsr: unknown command 'federte': did you mean 'federate'? see `fedsr --help`\n"
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err.startswith("fedsr: unknown command 'xyzzy': the commands are demo, simulate, ")


def raising(error: BaseException, cause: BaseException | None = None):
    def command() -> None:
        """Fails."""
        raise error from cause

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("site a: found nothing\nsite b: too"), 2, "site a: found nothing\nfedsr: site b: too"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume"),
        (
            MemoryError(),
            1,
            "out of memory; close other programs, or choose a smaller grid, preset or number of processes",
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
            1,
            "out of memory; close other programs, or choose a smaller grid, preset or number of processes",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "run/x"),
            1,
            "run/x: No space left on device; free some space and run the same command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "/x: Permission denied, expected access to it; change its permissions",
        ),
    ],
)
def test_failures_are_one_line(command, capsys, error, status, message):
    command(raising(error))
    assert main(["probe"]) == status
    assert capsys.readouterr().err == f"fedsr: {message}\n"


def test_a_mistake_that_a_library_wrapped_is_still_one_line(command, capsys):
    command(raising(RuntimeError("while instantiating"), cause=UserError("site.json: found no labels")))
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == "fedsr: site.json: found no labels\n"


def test_a_defect_keeps_its_traceback(command):
    command(raising(KeyError("defect")))
    with pytest.raises(KeyError, match="defect"):
        main(["probe"])


@pytest.mark.parametrize("name", list(commands.COMMANDS))
def test_every_command_explains_all_its_arguments_and_has_an_example(name, capsys):
    function = commands.COMMANDS[name]
    parts = sections(function)
    assert set(arguments(parts.get("args", ""))) == {key for key in function.__annotations__ if key != "return"}
    assert parts["example"].startswith(f"fedsr {name}")
    assert main([name, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: fedsr {name}")
    assert max(map(len, output.splitlines())) <= 110
    for key in arguments(parts.get("args", "")):
        assert parameter_type(function, key)[0] in (str, int, float, bool)
        assert f"--{key}" in output or key.upper() in output


def test_help_of_a_command(command, capsys):
    command(probe)
    assert main(["probe", "a", "--help"]) == 0
    assert capsys.readouterr().out == (
        "usage: fedsr probe SITES ... --out TEXT [options]\n\n"
        "A command of this test.\n\n"
        "arguments:\n"
        "  SITES          site folders\n"
        "  --out TEXT     folder\n"
        "  --rounds N     how many (default: 3)\n"
        "  --share X      of something (default: 0.5)\n"
        "  --processes    a switch\n"
        "  --shape N ...  three numbers\n\n"
        "example:\n"
        "  fedsr probe a --out b\n"
    )


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from fedsr_monai.cli import main; main(['--help']); main(['federate', '--help'])\n"
        "heavy = {'torch', 'monai', 'numpy', 'ignite', 'nibabel', 'scipy', 'fire'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in commands.COMMANDS)


@pytest.mark.parametrize(
    ("when", "status", "words"),
    [
        ("builtins.__import__ = interrupt", 130, "fedsr: interrupted; run the same command again to resume\n"),
        ("import fedsr_monai.cli; fedsr_monai.cli.say = interrupt", 130, "fedsr: interrupted; run the same command"),
        ("import atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT)", 0, ""),
    ],
    ids=["while modules are imported", "while an interrupt is told", "while the interpreter closes"],
)
def test_an_interrupt_at_any_moment_is_told_in_one_line(when, status, words):
    script = (
        "import builtins, os, signal, sys; from fedsr_monai.__main__ import program; import fedsr_monai.commands as c\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it\n"
        "def interrupt(*_, **__): raise KeyboardInterrupt\n"
        "if 'atexit' not in sys.argv[1]: c.COMMANDS['version'] = interrupt\n"
        "when = sys.argv.pop(1); sys.argv = ['fedsr', 'version']; exec(when)\n"
        "program()"
    )
    done = subprocess.run([sys.executable, "-c", script, when], capture_output=True, text=True)
    assert done.returncode == status and done.stderr.startswith(words) and done.stderr.count("\n") <= 1


def test_a_site_that_lost_its_description_is_not_passed_over(tmp_path):
    for name in ("whole", "lost", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "site.json").touch()
    (tmp_path / "lost" / "atlas").mkdir()
    assert expand_sites([str(tmp_path)]) == [str(tmp_path / "lost"), str(tmp_path / "whole")]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered):
    command, environment = (
        f"{sys.executable} -m fedsr_monai --help | true",
        os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert done.stderr == ""


def test_version(capsys):
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fedsr-monai 0.1.0"
    assert any(line.startswith("torch ") for line in lines)


def make_sites(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "site.json").write_text("{}")


def test_sites_are_named_one_by_one_by_folder_by_pattern_or_with_commas(tmp_path):
    make_sites(tmp_path, "b", "a", "c")
    (tmp_path / "notes").mkdir()
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert expand_sites([b, a]) == [b, a]
    assert expand_sites([f"{b},{a}"]) == [b, a]
    assert expand_sites([str(tmp_path)]) == [a, b, c]
    assert expand_sites([str(tmp_path / "*")]) == [a, b, c]
    assert expand_sites([c, str(tmp_path)]) == [c, a, b]
    assert expand_sites([str(tmp_path / "notes")]) == [str(tmp_path / "notes")]
    with pytest.raises(UserError, match=r"zz\*: found no match, expected site folders"):
        expand_sites([str(tmp_path / "zz*")])
    with pytest.raises(UserError, match="sites: found none, expected at least one site folder"):
        expand_sites([","])


def test_overrides_are_json_or_text():
    assert parse_overrides(["epochs=3", "learning_rate=1e-4", "preset=full", 'train#x={"a": [1]}', "scie=false"]) == {
        "epochs": 3,
        "learning_rate": 1e-4,
        "preset": "full",
        "train#x": {"a": [1]},
        "scie": False,
    }
    with pytest.raises(UserError, match="--override: found 'epochs', expected ID=VALUE"):
        parse_overrides(["epochs"])
    with pytest.raises(UserError, match="--override: found epochs twice"):
        parse_overrides(["epochs=3", "epochs=4"])


def test_check_names_every_fault_and_exits_2(tmp_path, capsys):
    make_sites(tmp_path, "a", "b")
    assert main(["check", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert {str(tmp_path / "a"), str(tmp_path / "b")} <= {
        line.split("/site.json")[0] for line in output.out.splitlines()
    }
    assert output.err == (
        f"fedsr: site folders: found {len(output.out.splitlines())} violations of the contract, expected none; "
        "fix the files named above and check again\n"
    )


@pytest.mark.parametrize(
    "line", ["check {}", "report {}", "evaluate {}", "segment {} --out out", "federate {} --out out"]
)
def test_a_path_that_no_file_system_holds_is_one_line(tmp_path, capsys, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    assert main(line.format("a" * 300).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedsr: ") and error.count("\n") == 1 and "a" * 300 in error


def test_report_of_nothing(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fedsr: {tmp_path}: found nothing to report, expected ") and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
