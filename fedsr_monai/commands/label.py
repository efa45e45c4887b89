"""`fedsr label`: serve scans with MONAI Label."""

from __future__ import annotations


def label(
    studies: str,
    out: str | None = None,
    weights: str | None = None,
    site: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    protocol: str | None = None,
) -> None:
    """Serve fedsr_site with MONAI Label on a folder of scans, for 3D Slicer: segment, correct, train on what was corrected.

    Runs in an environment of its own, which `make label-env` makes. A copy of the bundle is served; training fine-tunes its
    segmentation head on the corrected labels. The same command continues with what was trained.

    Args:
        studies: folder of NIfTI scans, skull-stripped and roughly in the atlas' space; corrected labels go to labels/ in it. Or
            the DICOMweb address of a PACS, whose MR series are served; corrected labels go there as DICOM SEG
        out: folder for MONAI Label's app with the copy of the bundle; by default <studies>-label beside the scans; needed
            for a PACS
        weights: checkpoint to serve; by default the one that comes with the bundle
        site: site folder whose grid and atlas are used, with the weights of that site
        host: address to listen on; the default can be reached from this machine only
        port: port to listen on
        protocol: whose borders the labels have, neuromorphometrics (the default) or freesurfer; not with --site or --weights

    Example:
        fedsr label scans
        fedsr label http://127.0.0.1:8042/dicom-web --out label
        fedsr label scans --site sites/adult-3t --weights runs/first/sites/adult-3t/model.pt
    """
    from fedsr_monai.monai_label.server import serve

    serve(studies, out, weights, site, host, port, protocol)
