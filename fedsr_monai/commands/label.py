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
    """Serve fedsr_site with MONAI Label on a folder of scans, for 3D Slicer: segment, correct, and train on the corrections.

    Runs in an environment of its own, which `make label-env` creates. MONAI Label serves a copy of the bundle; training
    fine-tunes its segmentation head on the corrected labels. The same command continues from the trained weights.

    Args:
        studies: folder of NIfTI scans, skull-stripped and roughly in the space of the atlas, with corrected labels
            saved in its labels/; or the DICOMweb address of a PACS, whose MR series are served, with corrected labels
            sent back as DICOM SEG
        out: folder for MONAI Label's app with the copy of the bundle; by default <studies>-label beside the scans;
            required for a PACS
        weights: checkpoint to serve; by default the one that comes with the bundle
        site: site folder whose grid and atlas are used; give it together with that site's --weights
        host: address to listen on; the default can be reached from this machine only
        port: port to listen on
        protocol: label protocol, the rules by which borders are drawn: neuromorphometrics (the default) or freesurfer;
            not with --site or --weights

    Example:
        fedsr label scans
        fedsr label http://127.0.0.1:8042/dicom-web --out label
        fedsr label scans --site sites/adult-3t --weights runs/first/sites/adult-3t/model.pt
    """
    from fedsr_monai.monai_label.server import serve

    serve(studies, out, weights, site, host, port, protocol)
