"""`fedsr prepare`: a site folder from raw scans, several of them at once, resumable."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsr_monai.atlas.build import default_shape, grid_affine
from fedsr_monai.checks import check_whole_number, is_number
from fedsr_monai.errors import UserError, UserErrors, one_line, user_error
from fedsr_monai.files import claim_folder, files_below, read_json, write_json
from fedsr_monai.prepare.atlas import AtlasFiles, make_atlas
from fedsr_monai.prepare.label_ids import to_structures
from fedsr_monai.prepare.load import read_mask, read_scan
from fedsr_monai.prepare.pipeline import image_on_grid, prepare_scan
from fedsr_monai.prepare.qc import write_qc
from fedsr_monai.prepare.sources import Source, find_sources, say_left_out
from fedsr_monai.prepare.split import LEFT_OUT, split
from fedsr_monai.prepare.table import write_table
from fedsr_monai.progress import Progress, say
from fedsr_monai.sites.contract import SECTIONS
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import read_volume, write_volume
from fedsr_monai.spatial.resampling import resample_labels, voxel_map

VERSION = 2  # raise it when a scan is prepared differently: finished scans of another version are prepared again
UNLABELLED = "no labels, and another scan of this person is in test or validation"
RECORDS = "prepare"  # in the site folder: settings, one record and picture per scan, the table


@dataclass(frozen=True)
class Job:
    """Describe one scan to prepare. `section` says whether its labels are needed."""

    root: Path
    source: Source
    section: str
    fingerprint: dict[str, Any]

    @property
    def files(self) -> dict[str, str]:
        """Return the scan's entry in site.json."""
        labelled = self.section != "training"
        return {kind: f"{kind}s/{self.source.name}.nii.gz" for kind in ("image", "label")[: 1 + labelled]}

    @property
    def record(self) -> Path:
        return self.root / RECORDS / f"{self.source.name}.json"


def prepare_site(
    source: str | os.PathLike,
    out: str | os.PathLike,
    atlas: AtlasFiles | None = None,
    name: str | None = None,
    spacing: float = 2.0,
    shape: Sequence[int] | None = None,
    layout: str | None = None,
    person_pattern: str | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    processes: int = 2,
) -> Path:
    """Make a site folder from the raw scans below `source`. The same input gives the same bytes.

    Each scan is masked, corrected for its bias field, registered to the atlas by an affine map, resampled to the grid,
    and scaled to [0, 1]. `prepare/` in the site folder receives a record (JSON, with the matrix) and a picture (PNG)
    of each scan, and the table `scans.csv`. A run that was interrupted resumes; a finished scan is prepared again only if
    its files or the atlas have changed.

    Args:
        source: BIDS tree, FreeSurfer subjects, or NIfTI and .mgz files (see `find_sources`).
        out: the site folder.
        atlas: the site's own labelled scan; None for the project's atlas.
        name: name of the site; by default that of the folder.
        spacing: voxel size of the grid in mm.
        shape: voxels of the grid; by default the project's grid for this spacing.
        layout: bids, freesurfer, flat or dicom; by default what `source` looks like.
        person_pattern: regular expression that finds the person in the name of a scan (see `find_sources`).
        validation: number of people with labelled scans to validate on (see `split`).
        test: number of people with labelled scans to test on.
        seed: seed of the split.
        processes: number of worker processes.

    Returns:
        The absolute path of the site folder.

    Raises:
        UserError: the source, the atlas or an argument is wrong; no scan was prepared.
        UserErrors: scans were refused, one line each; the site folder holds the others.

    Examples:
        >>> import fedsr_monai as fm
        >>> site = fm.prepare_site("scans", "mysite", spacing=4.0, shape=(40, 48, 40), processes=1)
        >>> (site / "site.json").is_file()
        True
    """
    check_whole_number("--processes", processes)
    root = Path(out).absolute()
    shape = default_shape(spacing) if shape is None else tuple(shape)
    grid_affine(spacing, shape)  # raises for a bad grid before the folder is made
    found = find_sources(source, layout, person_pattern)
    say_left_out(found)
    for label in found.tissue_maps:
        say(f"{label}: a map of tissues, not of structures; its scan trains without labels")
    shown = [s for s in found.sources if atlas and s.image.resolve() == Path(atlas.image).resolve()]
    sources = [s for s in found.sources if s not in shown]
    if not sources:
        raise UserErrors(
            [*found.refused.values(), UserError(source, "no scan to train on", "at least one", "add some")]
        )
    sections = split(sources, validation, test, seed, [s.person for s in shown])
    claim(root, {"source": str(Path(source).absolute()), "spacing": spacing, "shape": list(shape)})
    own, grid = make_atlas(atlas, spacing, shape, root, RECORDS)
    _atlas.cache_clear()  # it may hold the atlas of an earlier call on this folder
    atlas_print = hashlib.sha256(own.image.tobytes() + own.label.tobytes()).hexdigest()
    jobs = [
        Job(root, s, sections[s.name], {"version": VERSION, "atlas": atlas_print, **_stamps(s, sections[s.name])})
        for s in sources
        if sections[s.name] != LEFT_OUT
    ]
    missing = [job for job in jobs if not is_done(job)]
    faults = dict(found.refused)
    for fault in faults.values():
        say(f"fedsr: {fault}")
    with Progress(total=len(jobs), initial=len(jobs) - len(missing), desc="prepare", unit="scan", announce=True) as bar:
        for job, refusal in run_jobs(missing, processes):
            if refusal:
                faults[job.source.name] = refusal
                say(f"fedsr: {refusal}")
            bar.update()
    unlabelled = [(s, UNLABELLED) for s in sources if sections[s.name] == LEFT_OUT]
    rows = [_row(job, faults) for job in jobs]
    rows += [_base(s) | {"status": LEFT_OUT, "reason": reason} for s, reason in found.left_out + unlabelled]
    rows += [{"name": name, "status": "refused", "reason": str(fault)} for name, fault in found.refused.items()]
    write_table(root / RECORDS / "scans.csv", rows)
    done = [job for job in jobs if job.source.name not in faults]
    entries = {section: [job.files for job in done if job.section == section] for section in SECTIONS}
    if not entries["training"]:
        fix = "fix the scans and run the command again"
        raise UserErrors([*faults.values(), UserError(root, "no scan left to train on", "at least one", fix)])
    write_site(
        root, name or root.name, own.image, own.label, grid.affine, fine_label=own.fine_label,
        training=entries["training"], validation=entries["validation"], test=entries["test"],
    )  # fmt: skip
    if faults:
        raise UserErrors(faults.values())
    return root


def claim(root: Path, settings: dict[str, Any]) -> None:
    """Begin a site folder, or check that it was begun with the same settings.

    Raises:
        UserError: the folder holds something else or cannot be written.
    """
    claim_folder(
        root, f"{RECORDS}/settings.json", settings, "choose another folder for --out, or remove this one", "a site"
    )


def is_done(job: Job) -> bool:
    """Return whether a scan is finished, from the same files and atlas. Its record is written last."""
    try:
        record = _record(job)
    except UserError:
        return False
    return (
        record.get("fingerprint") == job.fingerprint
        and _is_whole(record)
        and all((job.root / file).is_file() for file in job.files.values())
    )


def run_jobs(jobs: list[Job], processes: int) -> Iterator[tuple[Job, UserError | None]]:
    """Prepare scans and yield each one as it finishes, with its error or None.

    A worker process that dies takes the others with it. The scans that were lost are then prepared again, each in a process
    of its own, so that only the scan that killed the worker fails.
    """
    if processes == 1 or len(jobs) < 2:
        yield from ((job, prepare_job(job)) for job in jobs)
        return
    lost = []
    for job, result in _in_processes(jobs, min(processes, len(jobs))):
        if isinstance(result, BrokenProcessPool):
            lost.append(job)
        else:
            yield job, result
    for job in lost:
        ((_, result),) = _in_processes([job], 1)
        if isinstance(result, BrokenProcessPool):
            fix = "run the command again with --processes 1; finished scans are kept"
            result = UserError(job.source.image, "that its process was killed", "about 2 GB of memory for each", fix)
        yield job, result


def _in_processes(jobs: list[Job], processes: int) -> Iterator[tuple[Job, UserError | BrokenProcessPool | None]]:
    # One thread per process: the threads of two scans would wait for each other.
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            futures = {pool.submit(prepare_job, job): job for job in jobs}
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, BrokenProcessPool):
                    raise error
                yield futures[future], error or future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def prepare_job(job: Job) -> UserError | None:
    """Prepare one scan and write its files; return its error or None."""
    started, source = time.perf_counter(), job.source
    try:
        image, label, grid = _atlas(str(job.root))
        scan = read_scan(source.image)
        mask = read_mask(source.mask, scan) if source.mask else None
        prepared = prepare_scan(scan, mask, image, grid, str(source.image))
        if "label" in job.files and source.label is not None:
            own = read_volume(source.label)
            structures = torch.from_numpy(to_structures(own.voxels, source.label))[None]
            matrix = voxel_map(prepared.matrix @ own.affine, grid.affine)
            write_volume(
                job.root / job.files["label"], resample_labels(structures, matrix, grid.shape)[0].numpy(), grid.affine
            )
        write_volume(job.root / job.files["image"], image_on_grid(prepared, grid)[0].numpy(), grid.affine)
        write_qc(job.record.with_suffix(".png"), source.name, scan.voxels, prepared, label, grid)
        record = {
            "name": source.name,
            "person": source.person,
            "image": str(source.image),
            "label": str(source.label) if source.label else None,
            "mask": str(source.mask) if source.mask else None,
            "mask_from": prepared.mask_from,
            "affine": scan.affine.tolist(),
            "shape": list(scan.voxels.shape),
            "codes": [int(scan.header["qform_code"]), int(scan.header["sform_code"])],
            "matrix": prepared.matrix.tolist(),
            "quality": asdict(prepared.quality),
            "seconds": round(time.perf_counter() - started, 1),
            "fingerprint": job.fingerprint,
        }
        write_json(job.record, record)
    except Exception as error:  # no error of one scan may stop the others
        job.record.unlink(missing_ok=True)
        fix = "check the scan with another program; if it is sound, report this line"
        return user_error(error) or UserError(source.image, one_line(error), "a scan that can be prepared", fix)
    return None


@lru_cache(maxsize=1)
def _atlas(root: str) -> tuple[np.ndarray, np.ndarray, Grid]:
    image, label = (read_volume(Path(root, "atlas", f"{kind}.nii.gz")) for kind in ("image", "label"))
    return image.voxels, label.voxels, Grid(image.affine, image.voxels.shape)


def _stamps(source: Source, section: str) -> dict[str, list]:
    """Return path, size and modification time of each file that a scan is prepared from; for a missing file, only the path.

    For a folder of DICOM files, these are the sum of their sizes and the latest modification time.
    """
    files = {"image": source.image, "mask": source.mask, "label": source.label if section != "training" else None}
    return {kind: [str(file), *_state(file)] for kind, file in files.items() if file}


def _state(file: Path) -> list[int]:
    try:
        states = [one.stat() for one in (files_below(file) if file.is_dir() else [file])]
    except OSError:
        return []
    return [sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)]


def _record(job: Job) -> dict[str, Any]:
    return read_json(job.record, "the record of a prepared scan", "remove it")


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Return whether the record of a finished scan has everything that the table needs."""
    fit, matrix = record.get("quality"), record.get("matrix")
    if not (isinstance(fit, dict) and isinstance(matrix, list) and isinstance(record.get("mask_from"), str)):
        return False
    scales = fit.get("scales")
    if not (isinstance(scales, list) and scales and len(matrix) == 4 and all(isinstance(row, list) for row in matrix)):
        return False
    numbers = [record.get("seconds"), *(fit.get(key) for key in ("overlap", "correlation", "turn")), *scales]
    return all(map(is_number, [*numbers, *chain.from_iterable(matrix)])) and {len(row) for row in matrix} == {4}


def _base(source: Source) -> dict[str, Any]:
    return {"name": source.name, "person": source.person, "image": str(source.image)}


def _row(job: Job, faults: Mapping[str, UserError]) -> dict[str, Any]:
    fault = faults.get(job.source.name)
    if fault:
        return _base(job.source) | {"status": "refused", "reason": str(fault)}
    record = _record(job)
    kept = {key: record[key] for key in ("mask_from", "seconds", "quality", "matrix")}
    return _base(job.source) | {"status": "prepared", "section": job.section, **kept}
