"""Simulated sites on disk: several hospitals with their own patients and scanners, and one public atlas."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fedsr_monai.atlas.build import build_atlas, default_shape, fine_label, grid_affine
from fedsr_monai.atlas.templates import VERSION
from fedsr_monai.checks import check_choice, check_whole_number
from fedsr_monai.errors import UserError
from fedsr_monai.files import claim_folder
from fedsr_monai.labels import LABELS
from fedsr_monai.networks.protocols import NEUROMORPHOMETRICS
from fedsr_monai.progress import Progress, say
from fedsr_monai.simulation.profiles import PROFILES, UNSEEN, UNSEEN_TRAINING, Profile, profile, random_profile
from fedsr_monai.simulation.protocols import DRAWN_PROTOCOLS, PROTOCOLS
from fedsr_monai.simulation.real_anatomy import deal, list_anatomies, read_anatomy
from fedsr_monai.simulation.subject import (
    atlas_label,
    drawn_fine_label,
    image_anatomy,
    simulate_subject,
)
from fedsr_monai.sites.contract import SECTIONS, entry_kinds
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.grid import fine_affine
from fedsr_monai.spatial.nifti import read_volume, write_volume

RECORD = "simulation.json"  # in each site folder: the arguments that its scans were made from


def simulate_sites(
    out: str | os.PathLike,
    sites: int = 4,
    training: int = 8,
    validation: int = 2,
    test: int = 4,
    spacing: float = 2.0,
    shape: Sequence[int] | None = None,
    seed: int = 0,
    unseen: bool = False,
    profiles: Sequence[str] | None = None,
    processes: int = 2,
    anatomies: str | os.PathLike | None = None,
    test_anatomies: str | None = None,
    protocols: Sequence[str] | None = None,
) -> list[Path]:
    """Write simulated site folders below `out` and return them. The same arguments give the same bytes.

    Each subject has a seed of its own, made from `seed`, site, section and number, so that changing the number of subjects
    does not change those that both runs share. An interrupted run resumes; a finished subject is not simulated again.

    Args:
        out: folder for the site folders, one per profile.
        sites: number of hospitals; beyond the built-in profiles they are drawn at random.
        training, validation, test: scans per site; training scans get no labels.
        spacing: voxel size in mm.
        shape: voxels of the grid; by default the project's grid for this spacing.
        seed: seed of everything random.
        unseen: add the paediatric site with 7 training scans, which is meant to join after the federated phase.
        profiles: names of built-in profiles to simulate instead of the first `sites`.
        processes: number of worker processes.
        anatomies: folder of real label maps (`*_aseg.nii.gz`, FreeSurfer ids), one per person. Every subject is then one of these
            people, deformed a little, and the atlas of a site is another of them, imaged by the site's scanner. `deal` decides
            who goes where.
        test_anatomies: label maps for testing only, by their numbers in the sorted list, such as "13-20"; by default the last
            40 %.
        protocols: label protocol of each site in turn: `neuromorphometrics` (by default) or `freesurfer-like`; with
            `anatomies`, `freesurfer` (by default) or `neuromorphometrics-like`.

    Raises:
        UserError: a count, the grid or the name of a profile or protocol is wrong, `out` holds sites made from other arguments, the
            template packages are not installed, the label maps are too few or cannot be read, or the disk is full.

    Examples:
        >>> import fedsr_monai as fm
        >>> folders = fm.simulate_sites(
        ...     "sites", sites=1, training=1, validation=0, test=1, spacing=6.0, shape=(32, 32, 32), processes=1
        ... )
        >>> [folder.name for folder in folders]
        ['adult-3t']
    """
    counts = dict(zip(SECTIONS, (training, validation, test)))
    limits = {"sites": (sites, 1), "seed": (seed, 0), "processes": (processes, 1)}
    limits.update({section: (count, int(section == "training")) for section, count in counts.items()})
    for key, (value, least) in limits.items():
        check_whole_number(key, value, least)
    shape = default_shape(spacing) if shape is None else tuple(shape)
    hospitals = [(member, counts) for member in _hospitals(sites, profiles, seed, unseen)]
    if unseen:
        hospitals.append((profile(UNSEEN), {**counts, "training": UNSEEN_TRAINING}))

    if anatomies is not None:
        return _semi_real(
            Path(out).absolute(),
            hospitals,
            list_anatomies(anatomies, test_anatomies),
            protocols,
            spacing,
            shape,
            seed,
            processes,
        )
    if test_anatomies is not None:
        found, fix = repr(test_anatomies), "name their folder with --anatomies"
        raise UserError("test_anatomies", found, expected="real anatomies too", fix=fix)
    borders = _by_site(protocols, DRAWN_PROTOCOLS, len(hospitals))
    image, label, affine = build_atlas(spacing, shape)
    labels = {name: label if name == NEUROMORPHOMETRICS else atlas_label(spacing, shape, name) for name in set(borders)}
    fine = {name: drawn_fine_label(spacing, shape, name) for name in labels}
    out = Path(out).absolute()
    for (member, _), protocol in zip(hospitals, borders):
        own = {} if protocol == NEUROMORPHOMETRICS else {"protocol": protocol}
        record = {"anatomy": VERSION, "profile": asdict(member), "spacing": spacing, "shape": list(shape), "seed": seed}
        _claim(out / member.name, record | own)
    jobs = [
        (
            out / member.name,
            member,
            _entry(section, index),
            (SECTIONS.index(section), index),
            seed,
            spacing,
            shape,
            affine,
            protocol,
        )
        for (member, wanted), protocol in zip(hospitals, borders)
        for section in SECTIONS
        for index in range(wanted[section])
    ]
    _make(jobs, processes)
    return [
        write_site(
            out / member.name,
            member.name,
            image,
            labels[protocol],
            affine,
            *_sections(wanted),
            fine_label=fine[protocol],
        )
        for (member, wanted), protocol in zip(hospitals, borders)
    ]


def _by_site(given: Sequence[str] | str | None, known: Mapping[str, object], sites: int) -> list[str]:
    """Return the protocol of each site: the given ones in turn, or by default the first known one."""
    names = [given] if isinstance(given, str) else list(given or list(known)[:1])
    for name in names:
        check_choice("protocols", name, known)
    return [names[number % len(names)] for number in range(sites)]


def _semi_real(
    out: Path,
    hospitals: Sequence[tuple[Profile, Mapping[str, int]]],
    files: tuple[list[str], list[str]],
    protocols: Sequence[str] | None,
    spacing: float,
    shape: Sequence[int],
    seed: int,
    processes: int,
) -> list[Path]:
    """Write sites with real anatomies; see `simulate_sites` for the arguments."""
    borders = _by_site(protocols, PROTOCOLS, len(hospitals))
    affine = grid_affine(spacing, shape)
    people = deal(*files, {member.name: counts for member, counts in hospitals}, seed)
    jobs, atlas = [], {kind: f"atlas/{kind}.nii.gz" for kind in entry_kinds("atlas")}
    for (member, _), protocol in zip(hospitals, borders):
        folder, dealt = out / member.name, people[member.name]
        record = {
            "profile": asdict(member), "protocol": protocol, "spacing": spacing, "shape": list(shape), "seed": seed,
            "anatomies": {section: [Path(file).name for file in members] for section, members in dealt.items()},
        }  # fmt: skip
        _claim(folder, record)
        fixed = (seed, spacing, shape, affine, protocol)
        jobs.append((folder, member, atlas, (len(SECTIONS), 0), *fixed, dealt["atlas"][0], False))
        for place, section in enumerate(SECTIONS):
            for index, file in enumerate(dealt[section]):
                jobs.append((folder, member, _entry(section, index), (place, index), *fixed, file, True))
    for section in SECTIONS:
        total = sum(counts[section] for _, counts in hospitals)
        distinct = len({file for dealt in people.values() for file in dealt[section]})
        if distinct < total:
            say(f"{section}: {distinct} people for {total} scans; who returns has another deformation and scanner")
    jobs.sort(key=lambda job: job[-2:])  # so that a label map is read once for all of its scans
    _make(jobs, processes)
    for folder in {job[0] for job in jobs}:
        _ensure_structures(folder / atlas["label"])
    result = []
    for member, counts in hospitals:
        target = out / member.name
        image, label, fine = (read_volume(target / file).voxels for file in atlas.values())
        result.append(write_site(target, member.name, image, label, affine, *_sections(counts), fine_label=fine))
    return result


def _ensure_structures(path: Path) -> None:
    empty = sorted(set(LABELS) - set(np.unique(read_volume(path).voxels).tolist()))
    if empty:
        raise UserError(
            path,
            found=f"no voxel of {', '.join(LABELS[k] for k in empty)}",
            expected="all structures in the atlas",
            fix="take smaller voxels, or look at the label map that simulation.json names",
        )


def _sections(counts: Mapping[str, int]) -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """Return the entries of `site.json` for training, validation and test."""
    training, validation, test = ([_entry(name, index) for index in range(counts[name])] for name in SECTIONS)
    return training, validation, test


def simulate_labelled(
    out: str | os.PathLike,
    subjects: int,
    spacing: float = 2.0,
    shape: Sequence[int] | None = None,
    seed: int = 0,
    processes: int = 2,
) -> Path:
    """Write one folder of *labelled* training scans, each from a hospital of its own (`random_profile`), and return it.

    They serve to train the weights that ship with the bundles; sites have no such labels. The function is deterministic and
    resumable, like `simulate_sites`.

    Raises:
        UserError: see `simulate_sites`.
    """
    for key, value in (("subjects", subjects), ("processes", processes)):
        check_whole_number(key, value)
    shape = default_shape(spacing) if shape is None else tuple(shape)
    image, label, affine = build_atlas(spacing, shape)
    out = Path(out).absolute()
    _claim(out, {"anatomy": VERSION, "labelled": True, "spacing": spacing, "shape": list(shape), "seed": seed})
    entries = [_entry("training", index, labelled=True) for index in range(subjects)]
    jobs = [
        (
            out,
            random_profile(np.random.default_rng([seed, index]), f"random-{index + 1}"),
            entry,
            (0, index),
            seed,
            spacing,
            shape,
            affine,
        )
        for index, entry in enumerate(entries)
    ]
    _make(jobs, processes)
    return write_site(out, out.name, image, label, affine, training=entries)


def _make(jobs: Sequence[tuple], processes: int) -> None:
    """Simulate the subjects whose files do not exist yet."""
    missing = [job for job in jobs if not all((job[0] / file).is_file() for file in job[2].values())]
    with Progress(total=len(jobs), initial=len(jobs) - len(missing), desc="simulate", unit="subject") as bar:
        for _ in _run(missing, processes):
            bar.update()


def _hospitals(sites: int, names: Sequence[str] | None, seed: int, unseen: bool) -> list[Profile]:
    if names is not None:
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",")]
        doubled = sorted({name for name in names if list(names).count(name) > 1})
        if doubled or not names or (unseen and UNSEEN in names):
            raise UserError("profiles", found=repr(",".join(names)), expected="each name once")
        return [profile(name) for name in names]
    seen = [member for name, member in PROFILES.items() if name != UNSEEN]
    drawn = [
        random_profile(np.random.default_rng([seed, number]), name=f"hospital-{number + 1}")
        for number in range(len(seen), sites)
    ]
    return (seen + drawn)[:sites]


def _claim(folder: Path, record: dict) -> None:
    """Keep scans made from different arguments apart: a folder belongs to the arguments that it was begun with."""
    claim_folder(folder, RECORD, record, "choose another folder, or remove this one", "a simulation")


def _run(jobs: list[tuple], processes: int) -> Iterator[None]:
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            _write_subject(*job)
            yield
        return
    with ProcessPoolExecutor(processes) as pool:
        futures = [pool.submit(_write_subject, *job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool:
            raise UserError(
                jobs[0][0].parent,
                found="that a worker process was killed",
                expected="about 1 GB of memory for each",
                fix="run the command again with processes=1 (finished subjects are kept)",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_subject(
    folder: Path,
    member: Profile,
    entry: Mapping[str, str],
    number: tuple[int, int],
    seed: int,
    spacing: float,
    shape: Sequence[int],
    affine: np.ndarray,
    protocol: str = NEUROMORPHOMETRICS,
    anatomy: str | None = None,
    deform: bool = True,
) -> None:
    seeds = [seed, zlib.crc32(member.name.encode()), *number]
    if anatomy is None:
        image, label = simulate_subject(member, seeds, spacing, shape, protocol)
    else:
        image, label = image_anatomy(member, anatomy, protocol, seeds, spacing, shape, deform)
        if "fine_label" in entry:
            person = read_anatomy(anatomy, protocol)
            fine = fine_label(person.structures, person.mask, person.affine, spacing, shape)
            write_volume(folder / entry["fine_label"], fine, fine_affine(affine))
    if "label" in entry:
        write_volume(folder / entry["label"], label, affine)
    write_volume(folder / entry["image"], image, affine)


def _entry(section: str, index: int, labelled: bool = False) -> dict[str, str]:
    file = f"{section}-{index + 1:03d}.nii.gz"
    kinds = {"image": "images"} if section == "training" and not labelled else {"image": "images", "label": "labels"}
    return {kind: f"{folder}/{file}" for kind, folder in kinds.items()}
