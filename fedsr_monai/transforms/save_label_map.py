"""Writing label maps at the end of a bundle's postprocessing."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from fedsr_monai.labels.label_map import write_label_map
from fedsr_monai.spatial.header import header_from_meta
from fedsr_monai.spatial.nifti import volume_stem


class SaveImageLabelMapd(SaveImaged):
    """Write `<scan>_dseg.nii.gz`, its table of labels and its volumes (see ``write_label_map``), each in one step.

    `<scan>` is the file name of the scan. ``SaveImaged`` overwrites the old file piece by piece, sets the header's space
    codes to 1 whatever those of the scan are, and hides a full disk behind a traceback. It is the base class nevertheless,
    and "SaveImage" is part of the name, because programs that want the result in memory remove such transforms: MONAI Label
    by the class, MONAI Deploy by the name.

    Args:
        keys: label maps [1, D, H, W] whose meta data name the scan (`filename_or_obj`) and hold its forms (see
            `VolumeReader`).
        output_dir: output folder; created if missing.
        output_postfix: suffix after the name of the scan.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        output_postfix: str = "dseg",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys, output_dir=Path(output_dir), output_postfix=output_postfix, allow_missing_keys=allow_missing_keys
        )
        self.output_dir, self.output_postfix = Path(output_dir), output_postfix

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        for key in self.key_iterator(dict(data)):
            meta = data[key].meta
            path = self.output_dir / f"{volume_stem(meta['filename_or_obj'])}_{self.output_postfix}.nii.gz"
            header = header_from_meta(meta, data[key].affine.cpu().numpy())
            write_label_map(path, data[key][0].cpu().numpy(), header)
        return dict(data)
