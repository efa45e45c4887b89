"""A run of the inference workflow over scans: everything that the scans share, and what is done with each of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from fedsr_monai import __version__
from fedsr_monai.atlas.standard import native_atlas
from fedsr_monai.device import release_freed_memory
from fedsr_monai.errors import UserError
from fedsr_monai.files import sha256
from fedsr_monai.inference import bids
from fedsr_monai.inference.interleaved import on_network_grid
from fedsr_monai.inference.ledger import Ledger, Source
from fedsr_monai.inference.load import LoadRaw, load_stripped
from fedsr_monai.inference.outputs import file_affine, write_results
from fedsr_monai.inference.prediction import Answer, atlas_in_protocol, label
from fedsr_monai.inference.quality import DOUBTFUL, REJECTED, Quality, assess, read_quality, record_quality
from fedsr_monai.inference.scans import Scan
from fedsr_monai.inference.workflow import ATLAS_FILES, Workflow, get_atlas, write_atlas
from fedsr_monai.labels.label_map import FREESURFER_TABLE, SLICER_TABLE, write_folder_tables
from fedsr_monai.labels.volumes import VOLUMES, read_volumes, structure_volumes
from fedsr_monai.progress import doing, say
from fedsr_monai.sites.site import load_fine_labels, load_site
from fedsr_monai.spatial.grid import Grid, fine_affine
from fedsr_monai.spatial.resampling import most_likely
from fedsr_monai.spatial.warping import warp
from fedsr_monai.transforms.check_scan import fraction_inside

OUTSIDE = "outside_percent"  # key in the meta data of a scan while it is being labelled
SHARED = "the whole folder"  # name in the record for files that belong to no single scan


@dataclass(frozen=True)
class Options:
    """What is done with each scan; see `segment`."""

    register: bool = False
    refine: int = 0
    raw: bool = False
    accurate: bool = False
    quality: bool = True
    keep_rejected: bool = False
    dicom_seg: bool = False
    fast: bool = False


@dataclass(frozen=True)
class Result:
    """What was written for a scan.

    Attributes:
        scan: the scan.
        labels: the label map.
        files: all files, the label map first.
        quality: quality of the result; None if it was not measured, or if the result was already complete.
        atlas: label map of the atlas that the deformation maps to the scan; None without registration.
    """

    scan: Scan
    labels: Path
    files: list[Path]
    quality: Quality | None
    atlas: Path | None


def finest_labels(site: str | os.PathLike, label: torch.Tensor, grid: Grid) -> tuple[Path, tuple[torch.Tensor, Grid]]:
    """Return the file of a site's atlas labels at the finest resolution that it has, and the labels [1, D, H, W] with their grid.

    Args:
        site: site folder.
        label: labels of its atlas, [1, D, H, W].
        grid: grid of `label`.
    """
    own = load_site(site)
    for _, fine in load_fine_labels(own):
        return Path(own.atlas["fine_label"]), (fine, Grid(fine_affine(grid.affine), tuple(fine.shape[1:])))
    return Path(own.atlas["label"]), (label, grid)


class Run:
    """A run over scans, with everything that they share.

    Args:
        workflow: network, grid and transforms.
        out: folder of the results.
        options: what is done with each scan.
        ledger: record of the folder.
        dataset: root of the BIDS dataset that the scans come from; None for other scans.
        site: site folder, or None.
    """

    def __init__(
        self,
        workflow: Workflow,
        out: Path,
        options: Options,
        ledger: Ledger,
        dataset: Path | None = None,
        site: str | os.PathLike | None = None,
    ) -> None:
        self.workflow, self.out, self.options = workflow, out, options
        self.ledger, self.dataset, self.site = ledger, dataset, site
        self.load: Callable[[Scan], MetaTensor] = load_stripped
        self.judges = options.quality
        self.atlas: Path | None = None
        self.atlas_labels: tuple[torch.Tensor, Grid] | None = None  # at the finest resolution available
        self.settings: dict[str, Any] = {}

    def begin(self) -> None:
        """Get the atlas and write the files that belong to the whole folder.

        Raises:
            UserError: there is no atlas for the options, or a file of another origin would be replaced.
        """
        options, workflow = self.options, self.workflow
        if self.dataset is None:
            read_volumes(self.out / VOLUMES)
        read_quality(self.out)
        atlas = None
        if options.register or options.raw or self.judges:
            try:
                atlas = get_atlas(self.site, workflow.grid)
                workflow.network.set_atlas(atlas[0], atlas_in_protocol(workflow, *atlas, workflow.grid))
            except UserError as error:
                if options.register or options.raw or options.dicom_seg:
                    raise
                say(f"fedsr: results are not judged, because there is no atlas to register: {error}")
                self.judges = False
        if options.raw:
            assert atlas is not None
            self.load = LoadRaw(atlas, workflow.grid, self.out)
        native = native_atlas() if options.register and self.site is None else None
        if options.register:
            assert atlas is not None
            if native is not None:
                native = (native[0], atlas_in_protocol(workflow, *native), native[2])
                self.atlas, self.atlas_labels = self.out / ATLAS_FILES[1], native[1:]
            else:
                assert self.site is not None
                self.atlas, self.atlas_labels = finest_labels(self.site, atlas[1], workflow.grid)
        files = list(bids.DATASET_FILES) if self.dataset else [SLICER_TABLE, FREESURFER_TABLE]
        with self.ledger.claim(SHARED, [*files, *(ATLAS_FILES if native else ())], Source("", "", {})):
            if self.dataset:
                bids.write_dataset_files(self.out, self.dataset, workflow.protocol)
            else:
                write_folder_tables(self.out)
            if native:
                write_atlas(self.out, *native)
        self.settings = {
            "version": __version__,
            "weights": sha256(workflow.weights),
            "protocol": workflow.protocol,
            "head": None if workflow.head is None else sha256(workflow.head),
            "site": None if self.site is None else str(self.site),
            **asdict(options),
        }

    def name_other_protocols(self) -> None:
        """Print a notice if the folder also holds results of another protocol, because their volumes are not comparable."""
        found = {entry["settings"].get("protocol") for entry in self.ledger.results().values()}
        if others := sorted(found - {None, self.workflow.protocol}):
            text = f"holds results of protocol {', '.join(others)} too; their volumes cannot be compared with those of this run"
            say(f"fedsr: {self.out}: {text}")

    def one(self, scan: Scan) -> Result:
        """Label one scan and write its files.

        In a BIDS dataset, a result that is already complete is kept, unless the ledger overwrites.

        Raises:
            UserError: the scan cannot be used, its result is rejected, or a file of another origin would be replaced.
        """
        files = scan.files.all(self.options.register, self.options.raw, self.options.dicom_seg)
        mask = None if scan.mask is None else sha256(scan.mask)
        source = Source(str(scan.path.absolute()), scan.sha256(), self.settings | {"mask": mask})
        needed = [file for file in files if file != scan.files.note]
        if self.dataset and not self.ledger.overwrite and self.ledger.has(scan.name, needed, source):
            return Result(scan, self.out / scan.files.labels, self._existing(files), None, self.atlas)
        if self.dataset:
            files = [*files, *bids.sidecars(scan, self.options.register)]
        with self.ledger.claim(scan.name, files, source):
            quality = self._label(scan)
        if quality is not None and quality.verdict == REJECTED:
            raise rejected(scan, quality, self.options.keep_rejected)
        return Result(scan, self.out / scan.files.labels, self._existing(files), quality, self.atlas)

    @torch.no_grad()
    def _label(self, scan: Scan) -> Quality | None:
        workflow, options = self.workflow, self.options
        registers = options.register or self.judges
        # The loaded scan gets no name here, because a reference would keep it in memory beside the copy that is worked on.
        data, image, answer = label(
            workflow, self._load(scan), register=registers, refine=options.refine, accurate=options.accurate
        )
        release_freed_memory()
        volumes = structure_volumes(data["pred"][0].cpu().numpy(), file_affine(data))
        outside = data["image"].meta[OUTSIDE]
        quality = judge(workflow, image, answer, volumes, outside) if self.judges else None
        if quality is not None:
            record_quality(self.out, scan.name, quality)
            note = self.out / scan.files.note
            note.unlink(missing_ok=True)
            if quality.verdict == REJECTED:
                if not options.keep_rejected:
                    raise rejected(scan, quality, kept=False)
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text("\n".join(quality.reasons) + "\n")
        registered = answer.ddf if answer.refined is None else answer.refined
        ddf = registered if options.register else None
        write_results(workflow, data, ddf, scan.files, self.out, self.atlas_labels, folder_tables=self.dataset is None)
        if options.dicom_seg:
            self._write_dicom_seg(scan, data["pred"][0].cpu().numpy(), quality)
        if self.dataset:
            bids.write_scan_files(self.out, self.dataset, scan, volumes, options.register, workflow.protocol)
        return quality

    def _load(self, scan: Scan) -> MetaTensor:
        """Return the scan [1, D, H, W], with the percentage of its brain outside the network's grid in its meta data."""
        loaded = self.load(scan)
        brain = loaded.as_tensor()[0] > 0
        inside = fraction_inside(brain, loaded.affine.numpy(), self.workflow.grid) if brain.any() else 1.0
        loaded.meta[OUTSIDE] = 100 * (1 - inside)
        doing("labelling")
        return loaded

    def _write_dicom_seg(self, scan: Scan, labels: np.ndarray, quality: Quality | None) -> None:
        """Write the labels as DICOM SEG, unless the result is rejected: a PACS would not show the note that says so."""
        from fedsr_monai.inference.dicom_seg import write_dicom_seg  # only where highdicom is installed

        path, verdict = self.out / scan.files.dicom_seg, quality.verdict if quality else ""
        if verdict == REJECTED:
            path.unlink(missing_ok=True)  # may be left from an earlier result
            return
        note = DOUBTFUL if verdict == DOUBTFUL else ""
        head = {} if self.workflow.head is None else {"head_sha256": self.settings["head"]}
        write_dicom_seg(
            path, labels, scan.dicom, {"weights_sha256": self.settings["weights"], **head}, self.workflow.protocol, note
        )

    def _existing(self, files: list[str]) -> list[Path]:
        return [self.out / file for file in files if (self.out / file).is_file()]


def judge(
    workflow: Workflow, image: torch.Tensor, answer: Answer, volumes: dict[int, float], outside_percent: float
) -> Quality:
    """Return the quality of the network's answer to a scan [1, 1, D, H, W], measured on the network's grid; see `assess`."""
    network, grid = workflow.network, workflow.grid
    assert answer.ddf is not None
    ddf = answer.ddf[None].float()
    warped = warp(network.atlas_image, ddf)
    return assess(
        segmentation=most_likely(answer.logits)[0].cpu().numpy(),
        registration=network.warp_labels(ddf)[0, 0].cpu().numpy(),
        image=on_network_grid(image, grid)[0, 0].cpu().numpy(),
        warped_atlas=warped[0, 0].cpu().numpy(),
        ddf=ddf[0].cpu(),
        volumes=volumes,
        outside_percent=outside_percent,
    )


def rejected(scan: Scan, quality: Quality, kept: bool) -> UserError:
    """Return the error that reports a rejected result."""
    fix = "check orientation, contrast and skull-stripping of the scan, or look at the result with --keep_rejected"
    if kept:
        fix = "do not use the files before somebody has looked at them"
    found = f"an implausible result ({'; '.join(quality.reasons)})"
    return UserError(scan.path, found=found, expected="the labels of a brain", fix=fix)
