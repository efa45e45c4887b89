"""The app that MONAI Label loads: two models, a trainer, and mistakes that reach the person as one line. Needs MONAI Label."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.train.bundle import BundleTrainTask

from fedsr_monai import __version__
from fedsr_monai.errors import user_error
from fedsr_monai.monai_label.app import BUNDLE, STATS, served_site
from fedsr_monai.monai_label.judged import JUDGE, label_and_judge
from fedsr_monai.monai_label.stats import read_stats
from fedsr_monai.monai_label.submitted import SERVED, with_own_ids
from fedsr_monai.spatial.nifti import volume_stem

RAW = f"{BUNDLE}_raw"
DESCRIPTIONS = {
    False: "Skull-stripped scans, roughly in the space of the atlas",
    True: "Whole heads, anywhere in space: the brain is found, corrected and aligned first",
}  # by whether the scans are raw


class LabelApp(MONAILabelApp):
    """Serve a copy of `fedsr_site`.

    `fedsr_site` labels scans that are skull-stripped and roughly in the atlas' space, `fedsr_site_raw` whole heads anywhere in
    space, where ITK is installed. Training fine-tunes the one network of both.

    Args:
        app_dir: the app folder (see `make_app`).
        studies: folder of the scans.
        conf: MONAI Label's settings.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.bundle = Path(app_dir) / "model" / BUNDLE
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"FedSR on MONAI ({__version__})",
            description="Registration and segmentation of T1-weighted brain MRI",
            version=__version__,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Return the models by name."""
        site = served_site(Path(self.app_dir))
        infers: dict[str, InferTask] = {BUNDLE: LabelTask(self.bundle, site)}
        if importlib.util.find_spec("SimpleITK") is not None:
            infers[RAW] = LabelTask(self.bundle, site, raw=True)
        return infers

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the trainers by name."""
        return {BUNDLE: SubmittedTrainTask(str(self.bundle), self.conf)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the ways to choose the next scan by name."""
        return {"first": First(), "random": Random()}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Label one scan.

        Raises:
            HTTPException: 422 with one line that says what is wrong with the scan; other errors are raised unchanged.
        """
        try:
            return super().infer(request, datastore)
        except Exception as error:
            mistake = user_error(error)
            if mistake is None:
                raise
            raise HTTPException(422, str(mistake)) from error


class LabelTask(InferTask):
    """Label a scan as `fedsr segment` does, judge the result, and name the structures as 3D Slicer knows them.

    MONAI Label's own task for bundles is not used: it would run the network once more, in addition to the run that is
    judged.

    Args:
        bundle: the served copy of the bundle.
        site: site folder whose grid and atlas are used; None for the bundle's own.
        raw: scans are whole heads, anywhere in space.
    """

    def __init__(self, bundle: Path, site: str | None, raw: bool = False) -> None:
        super().__init__(InferType.SEGMENTATION, dict(SERVED), 3, DESCRIPTIONS[raw], {JUDGE: True})
        self.bundle, self.site, self.raw = bundle, site, raw

    def is_valid(self) -> bool:
        """Return whether the model can be used."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the file of the labels, on the scan's own voxels, and what clients want to know about it.

        Raises:
            UserError: the scan cannot be labelled, or the result is rejected.
        """
        started, judge = time.perf_counter(), bool(request.get(JUDGE, True))
        with tempfile.TemporaryDirectory() as folder:
            labels, quality = label_and_judge(request["image"], folder, self.bundle, self.site, self.raw, judge)
            file = tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False).name  # MONAI Label deletes it
            shutil.move(labels, file)
        total = round(time.perf_counter() - started, 2)
        return file, {"label_names": self.labels, "latencies": {"total": total}, "centroids": {}, "quality": quality}


class SubmittedTrainTask(BundleTrainTask):
    """Train on submitted labels, whose segments are identified by name; the record of the training is the score in `/info`."""

    def stats(self) -> dict[str, Any]:
        """Return the progress and the score of the last training."""
        return read_stats(Path(self.bundle_path) / STATS)

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> list[dict[str, str]]:
        """Return the scans and their labels.

        Raises:
            UserError: a submitted label map has a segment that is not one of the structures; it names the file.
        """
        items = []
        # From the list of pairs, because a DICOM datastore names labels differently from their images.
        for item in sorted(datastore.datalist(), key=lambda item: item["image"]):
            info = datastore.get_label_info(volume_stem(item["label"]), DefaultLabelTag.FINAL).get("label_info") or []
            label = with_own_ids(Path(item["label"]), info, Path(self.bundle_path) / "eval" / "labels")
            items.append({"image": item["image"], "label": str(label)})
        return items
