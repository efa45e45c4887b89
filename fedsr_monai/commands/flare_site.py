"""`fedsr flare-site`: set up a participant's NVIDIA FLARE startup kit."""

from __future__ import annotations


def flare_site(startup_kit: str, site: str | None = None, state: str | None = None) -> None:
    """Set up a hospital's NVIDIA FLARE startup kit: name its data, and allow this package's classes.

    Writes local/fedsr.json. In local/resources.json it adds this package's classes to the allowed ones (FLARE 2.8 and
    later refuse others) and sets the launcher that restarts a killed job process. Run it at every site, and without
    --site on the server.

    Args:
        startup_kit: the FLARE folder of the site or the server, with startup/ and local/; for the simulator, its workspace
        site: the site folder; its path does not leave this machine
        state: folder for the states of runs; by default fedsr/ in the startup kit

    Example:
        fedsr flare-site hospital-a --site /data/mysite
    """
    from fedsr_monai.flare.startup_kit import prepare_startup_kit

    for path in prepare_startup_kit(startup_kit, site, state):
        print(path)
