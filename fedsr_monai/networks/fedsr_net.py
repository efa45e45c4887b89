"""The assembled network: shared encoder, two SCIE decoders, SA features and the site's atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fedsr_monai.labels import NUM_CLASSES
from fedsr_monai.networks.decoder import RegistrationHead, SegmentationHead
from fedsr_monai.networks.encoder import Encoder
from fedsr_monai.networks.label_fractions import label_fractions, predicted_fractions
from fedsr_monai.networks.sa import STATISTICS, SARepresentation
from fedsr_monai.networks.scie import DESIGNS, OF_CONVOLUTION
from fedsr_monai.spatial.warping import resize_ddf, warp

# widths: encoder stages at strides 1..16; channels: both heads at 1/2, 1/4, 1/8, 1/16.
PRESETS: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {"widths": (8, 16, 32, 64, 96), "channels": (24, 32, 48, 64)},
    "full": {"widths": (16, 32, 64, 128, 192), "channels": (48, 64, 96, 128)},
}
STRIDE = 16


@dataclass
class Registration:
    """The registration head's result for a batch of scans.

    Attributes:
        ddf: displacement at half resolution [B, 3, D/2, H/2, W/2], half-resolution voxels (what losses regularise).
        full_ddf: the same field on the full grid [B, 3, D, H, W], voxels.
        pooled: globally pooled f_d of the scales f1, f2, f3, [B, C] or [B, 2 C] each.
    """

    ddf: torch.Tensor
    full_ddf: torch.Tensor
    pooled: list[torch.Tensor]


@dataclass
class Prediction:
    """The network's segmentation and registration of a batch of scans.

    Attributes:
        logits: [B, classes, D, H, W].
        ddf: displacement from the atlas to the scan [B, 3, D, H, W], voxels; None without registration.
        warped_image: the atlas image warped by `ddf`, [B, 1, D, H, W]; None without registration.
    """

    logits: torch.Tensor
    ddf: torch.Tensor | None = None
    warped_image: torch.Tensor | None = None


class FedSRNet(nn.Module):
    """Joint registration and segmentation network of FedSR.

    `forward(image) -> logits` is what bundles, TorchScript and MONAI Label call; `register(image)` aligns the site's
    atlas to a scan, and `predict(image)` does both in one pass. TorchScript covers only the segmentation.

    State-dict keys: `encoder.*` and `sa.<head>.<scale>` may leave a site; `registration.*`, `segmentation.*` (the
    heads) and `atlas_image`, `atlas_label` stay there.

    Args:
        preset: "small" (two CPU cores) or "full" (128^3 on a GPU).
        num_classes: number of labels, including the background.
        scie: design of the SCIE blocks, a key of `fedsr_monai.networks.scie.DESIGNS`; True is "gate", False leaves them
            out (ablation).
        label_guidance, passes: see `RegistrationHead`.
        integrate: False takes the predicted field as a plain displacement, as the paper does; True integrates velocity
            fields.
        spatial_shape: shape of the atlas buffers before an atlas is set; when an atlas is loaded, they take its shape.
        sa_statistics: the statistics of f_d in the SA vectors: "normalised", the mean of each channel after instance
            normalisation, or "convolution", the mean and log standard deviation before it, with their variance over
            scans.

    Raises:
        ValueError: the preset, design or kind of statistics is unknown, or the design needs the convolution's statistics
            and `sa_statistics` does not provide them.

    Examples:
        >>> import torch
        >>> import fedsr_monai as fm
        >>> network = fm.FedSRNet().set_atlas(torch.rand(1, 32, 32, 32), torch.ones(1, 32, 32, 32)).eval()
        >>> with torch.no_grad():
        ...     prediction = network.predict(torch.rand(1, 1, 32, 32, 32))
        >>> tuple(prediction.logits.shape), tuple(prediction.ddf.shape)
        ((1, 14, 32, 32, 32), (1, 3, 32, 32, 32))
    """

    def __init__(
        self,
        preset: str = "small",
        num_classes: int = NUM_CLASSES,
        scie: bool | str = True,
        label_guidance: bool = True,
        passes: int = 2,
        integrate: bool = True,
        spatial_shape: Sequence[int] = (STRIDE, STRIDE, STRIDE),
        sa_statistics: str = "normalised",
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"FedSRNet() 'preset' is {preset!r}; expected one of {sorted(PRESETS)}")
        design = ("gate" if scie else None) if isinstance(scie, bool) else scie
        if design is not None and design not in DESIGNS:
            raise ValueError(f"FedSRNet() 'scie' is {scie!r}; expected True, False or one of {sorted(DESIGNS)}")
        if sa_statistics not in STATISTICS:
            raise ValueError(f"FedSRNet() 'sa_statistics' is {sa_statistics!r}; expected one of {list(STATISTICS)}")
        if design in OF_CONVOLUTION and sa_statistics != "convolution":
            raise ValueError(f"FedSRNet() 'scie' {design!r} needs sa_statistics 'convolution', not {sa_statistics!r}")
        widths, channels = PRESETS[preset]["widths"], PRESETS[preset]["channels"]
        self.num_classes = num_classes
        self.encoder = Encoder(widths)
        self.registration = RegistrationHead(
            widths, channels, num_classes, design, label_guidance, passes, integrate, sa_statistics
        )
        self.segmentation = SegmentationHead(widths, channels, num_classes, design, sa_statistics)
        self.sa = SARepresentation(channels[1:], sa_statistics)
        self.register_buffer("atlas_image", torch.zeros(1, 1, *spatial_shape))
        self.register_buffer("atlas_label", torch.zeros(1, 1, *spatial_shape, dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        # Weights that are passed on hold an empty atlas (all keys, but no voxel of a site's atlas), which must not replace
        # the network's own.
        if prefix + "atlas_label" in state_dict and not state_dict[prefix + "atlas_label"].any():
            state_dict |= {prefix + name: getattr(self, name) for name in ("atlas_image", "atlas_label")}
        # An atlas has the shape of its site's grid; make room for it, so that the shape need not be known before loading.
        for name in ("atlas_image", "atlas_label"):
            if prefix + name in state_dict:
                buffer = getattr(self, name)
                setattr(
                    self, name, torch.zeros_like(state_dict[prefix + name], dtype=buffer.dtype, device=buffer.device)
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_atlas(self, image: torch.Tensor, label: torch.Tensor) -> FedSRNet:
        """Give the network its site's atlas, and return the network (for configs).

        Args:
            image: [1, D, H, W] in [0, 1].
            label: ids [1, D, H, W].

        Raises:
            ValueError: their shapes differ.
        """
        if image.shape != label.shape:
            raise ValueError(
                f"set_atlas() 'label' has shape {tuple(label.shape)}, 'image' has {tuple(image.shape)}; they must match"
            )
        self.atlas_image = image[None].to(self.atlas_image)
        self.atlas_label = label[None].to(self.atlas_label)
        return self

    @property
    def has_atlas(self) -> bool:
        """Whether an atlas is set, that is, whether its label map contains any structure."""
        return bool((self.atlas_label > 0).any())

    def atlas_fractions(self) -> torch.Tensor:
        """Return the label fractions of the atlas, [1, classes, D/2, H/2, W/2]."""
        return label_fractions(pad_to_stride(self.atlas_label), self.num_classes)

    def one_hot(self, label: torch.Tensor) -> torch.Tensor:
        """Return the one-hot map, float32 [B, classes, D, H, W], of label ids [B, 1, D, H, W]."""
        return F.one_hot(label[:, 0].long(), self.num_classes).movedim(-1, 1).float()

    def segment(self, features: list[torch.Tensor], guided: bool = True) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits [B, classes, D, H, W] (float32) and the pooled f_d of f1, f2, f3, from encoder features of
        scans; without `guided`, SCIE is left out of this pass.
        """
        logits, pooled = self.segmentation(features, self.sa.segmentation.vectors(), guided)
        logits = logits.float()
        if not torch.jit.is_scripting():
            if logits.requires_grad and logits.device.type == "cpu":
                logits.register_hook(drop_subnormal)
        return logits, pooled

    def align(
        self,
        fixed: Sequence[torch.Tensor],
        moving: Sequence[torch.Tensor],
        fixed_fractions: torch.Tensor,
        moving_fractions: torch.Tensor | None = None,
    ) -> Registration:
        """Register the atlas (moving) to scans (fixed), from encoder features and label fractions.

        Args:
            fixed: encoder features of the scans.
            moving: encoder features of the atlas; one atlas is expanded to the batch of scans.
            fixed_fractions: predicted label fractions of the scans, [B, classes, D/2, H/2, W/2]. They take no gradient:
                the registration does not move the segmentation.
            moving_fractions: label fractions of the atlas; computed from its label map if None.
        """
        batch = fixed[0].shape[0]
        fractions = self.atlas_fractions() if moving_fractions is None else moving_fractions
        fixed_fractions = fixed_fractions.detach()
        moving = [f.expand(batch, *f.shape[1:]) for f in moving]
        vectors = self.sa.registration.vectors()
        ddf, pooled = self.registration(fixed, moving, vectors, fixed_fractions, fractions.expand_as(fixed_fractions))
        return Registration(ddf, resize_ddf(ddf, fixed[0].shape[2:]), pooled)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes, D, H, W] of an image [B, 1, D, H, W] of any size, which is padded to multiples of 16
        and cropped back.
        """
        logits, _ = self.segment(self.encoder(pad_to_stride(image)))
        return crop_to(logits, image.shape[2:])

    def register(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Register the site's atlas to scans on its grid.

        Args:
            image: scans [B, 1, D, H, W] in [0, 1].

        Returns:
            The displacement [B, 3, D, H, W] in voxels, and the warped atlas image [B, 1, D, H, W].

        Raises:
            ValueError: the network has no atlas, or the scans do not have its shape.
        """
        prediction = self.predict(image)
        assert prediction.ddf is not None and prediction.warped_image is not None  # asked for
        return prediction.ddf, prediction.warped_image

    def predict(self, image: torch.Tensor, register: bool = True) -> Prediction:
        """Segment scans and register the site's atlas to them, with one pass of encoder and segmentation head.

        Args:
            image: scans [B, 1, D, H, W] in [0, 1]; with `register`, on the grid of the atlas.
            register: False gives only the logits, for an image of any size.

        Raises:
            ValueError: with `register`, if the network has no atlas or the scans do not have its shape.
        """
        shape = image.shape[2:]
        if register:
            self._check_registrable(shape)
        fixed = self.encoder(pad_to_stride(image))
        logits, _ = self.segment(fixed)
        prediction = Prediction(crop_to(logits, shape))
        if register:
            moving = self.encoder(pad_to_stride(self.atlas_image))
            prediction.ddf = crop_to(self.align(fixed, moving, predicted_fractions(logits)).full_ddf, shape)
            prediction.warped_image = warp(self.atlas_image.expand_as(image), prediction.ddf)
        return prediction

    def _check_registrable(self, shape: torch.Size) -> None:
        if not self.has_atlas:
            raise ValueError("FedSRNet.register() needs an atlas: call set_atlas() or load a site's checkpoint first")
        if shape != self.atlas_image.shape[2:]:
            raise ValueError(
                f"FedSRNet.register() 'image' has shape {tuple(shape)}, the atlas {tuple(self.atlas_image.shape[2:])}; "
                "resample the image to the atlas' grid"
            )

    def warp_labels(self, ddf: torch.Tensor) -> torch.Tensor:
        """Warp the atlas labels by a displacement [B, 3, D, H, W] in voxels, and return them as uint8 [B, 1, D, H, W].

        The one-hot map is warped, and the label with the largest fraction wins.
        """
        fractions = warp(self.one_hot(self.atlas_label).expand(ddf.shape[0], -1, -1, -1, -1), ddf)
        return fractions.max(dim=1, keepdim=True).indices.to(torch.uint8)  # a third of the time of argmax on a CPU

    @torch.no_grad()
    def initialise_sa(self) -> None:
        """Set the SA features to the pooled f_d of the labelled atlas in both heads (Section II-A); the atlas also plays
        the role of the scan.
        """
        features = self.encoder(pad_to_stride(self.atlas_image))
        logits, pooled = self.segment(features)
        self.sa.update("segmentation", pooled, alpha=1.0)
        self.sa.update("registration", self.align(features, features, predicted_fractions(logits)).pooled, alpha=1.0)


def drop_subnormal(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient of logits in which values too small to change a weight are set to zero.

    Where the softmax is certain, the gradient falls below the smallest normal number (1e-38), which slows down Intel
    processors: the full-resolution convolution's gradient took 3.3 s instead of 0.6 s.
    """
    return F.hardshrink(gradient, 1e-25)


def pad_to_stride(image: torch.Tensor, stride: int = STRIDE) -> torch.Tensor:
    """Zero-pad the ends of [B, C, D, H, W] so that every side is a multiple of the encoder's stride."""
    depth, height, width = image.shape[2:]
    padding = [0, (-width) % stride, 0, (-height) % stride, 0, (-depth) % stride]  # F.pad begins with the last axis
    return F.pad(image, padding) if sum(padding) > 0 else image


def crop_to(volume: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Undo `pad_to_stride`: return the first `shape` voxels of [B, C, D, H, W]."""
    return volume[:, :, : shape[0], : shape[1], : shape[2]]


__all__ = ["FedSRNet", "PRESETS", "Prediction", "Registration"]
