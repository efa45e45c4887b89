"""`fedsr prepare`: make a site folder from raw scans."""

from __future__ import annotations

from fedsr_monai.errors import UserError


def prepare(
    source: str,
    out: str,
    atlas_image: str | None = None,
    atlas_label: str | None = None,
    atlas_mask: str | None = None,
    name: str | None = None,
    spacing: float = 2.0,
    shape: list[int] | None = None,
    layout: str | None = None,
    person_pattern: str | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    processes: int = 2,
) -> None:
    """Make a site folder from raw scans: brain mask, bias field, affine map to the atlas, grid, intensities.

    Takes a BIDS tree (sub-*/anat/*_T1w.nii.gz, masks and labels in derivatives), FreeSurfer subjects (orig, brainmask,
    aparc+aseg), or a folder of NIfTI or .mgz files (NAME.nii.gz, NAME_mask.nii.gz, NAME_dseg.nii.gz) and DICOM studies (folders NAME). Labels are 0 to 13 or
    FreeSurfer's. People with labelled scans go to validation and test, at most half of all; all scans of a person stay
    together. OUT/prepare receives one picture per scan for inspection, and scans.csv, which records what was done. A
    scan that cannot be registered to the atlas is reported and left out. Needs the extra "itk", and "demo" for the
    atlas that all sites are registered to.

    Args:
        source: folder of the scans
        out: site folder to make
        atlas_image: the site's own labelled scan; by default the atlas that the program builds, whose labels are under
            CC BY-NC
        atlas_label: label map of the atlas
        atlas_mask: brain mask of the atlas; by default the union of its labels
        name: name of the site; by default the name of the folder
        spacing: size of a voxel in mm; 1.5, 2 (as the weights that come with the bundles) and 2.5 have a default grid
        shape: voxels of the grid along each axis, three numbers; needed for any other spacing
        layout: bids, freesurfer, flat or dicom; by default detected
        person_pattern: regular expression that extracts the person from the name of a scan: its first group, or the
            whole match
        validation: number of people to validate on
        test: number of people to test on
        seed: seed of the split
        processes: number of worker processes, about 1.2 GB of memory each

    Example:
        fedsr prepare /data/bids --out mysite --atlas_image atlas.nii.gz --atlas_label atlas_dseg.nii.gz
        fedsr prepare /data/freesurfer --out mysite --test 4 --validation 2
        fedsr prepare /data/niftis --out mysite --person_pattern "^([A-Z]+[0-9]+)_"
    """
    from fedsr_monai.prepare import require_itk

    require_itk()
    if (atlas_image is None) != (atlas_label is None) or (atlas_mask is not None and atlas_image is None):
        raise UserError("--atlas_image and --atlas_label", "one without the other", "both or none", "give both")
    from fedsr_monai.prepare.atlas import AtlasFiles
    from fedsr_monai.prepare.site import prepare_site
    from fedsr_monai.sites.site import load_site

    if atlas_image is None:
        print("no --atlas_image: the atlas is the project's (labels under CC BY-NC, see the README)", flush=True)
    atlas = AtlasFiles(atlas_image, atlas_label, atlas_mask) if atlas_image and atlas_label else None
    root = prepare_site(
        source, out, atlas, name, spacing, shape, layout, person_pattern, validation, test, seed, processes
    )
    site = load_site(root)
    print(
        f"{root}: {len(site.training)} scans to train on, {len(site.validation)} to validate, {len(site.test)} to test"
    )
    print(f"{root}/prepare: look at the pictures; next: fedsr check {out}")
