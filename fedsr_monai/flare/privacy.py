"""Refuse to run if FLARE would ignore a site's privacy policy, as its simulator silently does."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.workspace import Workspace
from nvflare.private.privacy_manager import PrivacyService

from fedsr_monai.errors import UserError


def check_privacy_policy(workspace: Workspace) -> None:
    """Refuse a workspace with a `local/privacy.json` that this process has not loaded.

    Raises:
        UserError: there is such a file. The job processes of a deployment load it; those of the simulator do not.
    """
    policy = Path(workspace.get_site_privacy_file_path())
    if policy.exists() and PrivacyService.get_manager() is None:
        raise ignored_policy(policy)


def ignored_policy(policy: Path) -> UserError:
    """Return the error for a privacy policy that was given to the simulator."""
    return UserError(
        policy,
        found="a privacy policy, which FLARE's simulator ignores",
        expected="none in a simulation",
        fix="test it in a deployment (nvflare poc), or remove it to simulate without",
    )
