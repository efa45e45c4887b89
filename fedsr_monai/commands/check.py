"""`fedsr check`: check site folders."""

from __future__ import annotations

from fedsr_monai.commands.site_folders import expand_sites
from fedsr_monai.errors import UserError


def check(sites: list[str]) -> None:
    """Check that site folders keep the contract; report every file that violates it, the reason and the fix.

    Opens every file and changes nothing. The exit status is 0 if all is well and 2 if not.

    Args:
        sites: site folders, or a folder that holds several

    Example:
        fedsr check sites
    """
    from fedsr_monai.sites.check import check_site

    faults = 0
    for folder in expand_sites(sites):
        found = check_site(folder)
        faults += len(found)
        print("\n".join(map(str, found)) if found else f"{folder}: fit for use", flush=True)
    if faults:
        count = f"{faults} violation{'s' * (faults > 1)} of the contract"
        raise UserError("site folders", count, "none", "fix the files named above and check again")
