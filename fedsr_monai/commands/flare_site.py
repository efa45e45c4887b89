"""`fedsr flare-site`: prepare a participant's NVIDIA FLARE folder."""

from __future__ import annotations


def flare_site(kit: str, site: str | None = None, state: str | None = None) -> None:
    """Prepare a hospital's NVIDIA FLARE folder: name its data, and allow this package's classes.

    Writes local/fedsr.json, and the list of allowed classes in local/resources.json (FLARE 2.8 and later refuse others). Run it at every
    site, and without --site at the server.

    Args:
        kit: the FLARE folder (startup kit) of the site or the server; for the simulator, its workspace
        site: the site folder; stays on this machine
        state: folder for the states of runs; by default fedsr/ in the FLARE folder

    Example:
        fedsr flare-site hospital-a --site /data/mysite
    """
    from fedsr_monai.flare.kit import prepare_kit

    for path in prepare_kit(kit, site, state):
        print(path)
