"""The rooms of docs/architecture.md: an import may only go down."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "fedsr_monai"
FLOORS = [
    {"errors", "checks", "files", "progress", "device", "bundle_path", "bundle_overrides", "run_record", ""},
    {"spatial", "labels"},
    {"sites", "atlas"},
    {"networks", "losses", "transforms"},
    {"simulation", "synthesis"},
    {"handlers", "engines"},
    {"evaluation", "inference", "prepare", "baselines"},
    {"federation", "personalisation", "kept_weights", "pretraining"},
    {"demo", "study", "benchmark", "report", "flare", "monai_label"},
    {"cli", "commands", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Of one floor, and in this direction only. The package's face imports nothing before it is asked.
BESIDE = {
    ("labels", "spatial"),
    ("inference", "prepare"),
    ("inference", "evaluation"),
    ("pretraining", "federation"),
    ("personalisation", "federation"),
    ("personalisation", "kept_weights"),
    ("engines", "handlers"),
    ("synthesis", "simulation"),
    ("demo", "report"),
    ("study", "report"),
    ("cli", "commands"),
    ("__main__", "cli"),
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").replace("__init__", "")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {(name.split(".") + [""])[1] for name in names if name.split(".")[0] == "fedsr_monai"}
    return rooms


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def test_no_import_runs_upwards():
    upwards = []
    for file in FILES:
        own = room(file)
        for other in imported_rooms(file) - {own}:
            ground = FLOOR[other] == FLOOR[own] == 0  # its files use each other; a circle would not import
            if not (ground or FLOOR[other] < FLOOR[own] or (own, other) in BESIDE):
                upwards.append(f"{file.relative_to(PACKAGE)} imports fedsr_monai.{other}")
    assert len(FILES) > 100 and not upwards


def test_every_room_is_on_a_floor_and_says_what_belongs_there():
    rooms = {room(file) for file in FILES}
    assert rooms <= set(FLOOR)
    for folder in (path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder.name
