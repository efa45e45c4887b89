"""MONAI Deploy's own bundle operator in a Holoscan application on the CPU, between an operator that emits a scan and one that keeps the labels.

Needs monai-deploy-app-sdk and Holoscan, which are no dependency of this project (docs/hosts.md says how they were installed).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator


class Source(Operator):
    """Emit a scan as DICOMSeriesToVolumeOperator does: voxels as [D, H, W], the affine among the metadata."""

    def __init__(self, fragment: Application, *args, voxels: np.ndarray, affine: np.ndarray, **kwargs) -> None:
        self.voxels, self.affine = voxels, affine
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")

    def compute(self, op_input, op_output, context) -> None:
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        names = ("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing")
        meta = dict(zip(names, sizes)) | {"nifti_affine_transform": self.affine, "space": "RAS"}
        op_output.emit(Image(np.swapaxes(self.voxels, 0, 2), meta), "image")


class Sink(Operator):
    """Keep the labels in `kept`."""

    def __init__(self, fragment: Application, *args, kept: list[np.ndarray], **kwargs) -> None:
        self.kept = kept
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")

    def compute(self, op_input, op_output, context) -> None:
        self.kept.append(np.swapaxes(op_input.receive("pred").asnumpy(), 0, 2))


def labels_of(bundle: Path, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the label map of a scan [X, Y, Z] from a bundle: its TorchScript file or its folder."""
    from holoscan.conditions import CountCondition

    kept: list[np.ndarray] = []

    class App(Application):
        def compose(self) -> None:
            context = AppContext({"model": "no model: the operator is given the bundle"})
            inputs, outputs = ([IOMapping(name, Image, IOType.IN_MEMORY)] for name in ("image", "pred"))
            source = Source(self, CountCondition(self, 1), voxels=voxels, affine=affine, name="source")
            operator = MonaiBundleInferenceOperator(
                self,
                app_context=context,
                bundle_path=bundle,
                input_mapping=inputs,
                output_mapping=outputs,
                name="bundle",
            )
            self.add_flow(source, operator, {("image", "image")})
            self.add_flow(operator, Sink(self, kept=kept, name="sink"), {("pred", "pred")})

    App().run()
    return kept[0]
