"""The package's reader of volumes for MONAI's `LoadImage`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data.image_reader import ImageReader
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys, SpaceKeys

from fedsr_monai.errors import UserError
from fedsr_monai.spatial.dicom import read_volume_or_series
from fedsr_monai.spatial.header import forms_to_meta
from fedsr_monai.spatial.nifti import SUFFIXES

# If pydicom is installed and nvImageCodec is not, every `LoadImage`, whatever its own reader, warns twice that DICOM files will not be
# decoded on the GPU. Nothing here decodes them there.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


class VolumeReader(ImageReader):
    """Let `LoadImage` and `LoadImaged` read one volume as `read_volume` does, or the DICOM series of a folder (`read_series`).

    MONAI's own reader replaces the sform by the qform, whether or not the qform is set, if `pixdim` and the sform's voxel
    sizes differ by more than 1e-5.

    The meta data are those of MONAI's `NibabelReader`: `affine`, `original_affine`, `spatial_shape`, `space` and the
    numbers of the header, including both forms with their codes, here always in millimetres.

    Example::

        scan = LoadImage(reader=VolumeReader(), ensure_channel_first=True)("scan.nii.gz")
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return all(str(name).endswith(SUFFIXES) or os.path.isdir(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Sequence[PathLike]:
        """Return the paths; `get_data` does the reading.

        If `read` raised an error, `LoadImage` would try its other readers, and they would accept files that this one refuses.
        """
        return ensure_tuple(data)

    def get_data(self, img: Sequence[PathLike]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the voxels [D, H, W] of the volume and their meta data.

        Args:
            img: path of the volume, from `read`.

        Raises:
            UserError: there are several paths; or see `read_volume`.
        """
        if len(img) != 1:
            raise UserError(
                img[0], found=f"{len(img)} files for one scan", expected="one", fix="give one file per scan"
            )
        volume = read_volume_or_series(img[0])
        header = forms_to_meta(volume.header)
        meta = header | {
            MetaKeys.ORIGINAL_PIXDIM: header["pixdim"].copy(),
            MetaKeys.AFFINE: volume.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: volume.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(volume.voxels.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            "as_closest_canonical": False,
        }
        return volume.voxels, meta
