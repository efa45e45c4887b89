"""Set up all startup kits while FLARE provisions them: a builder for `project.yml`."""

from __future__ import annotations

from pathlib import Path

from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import Builder

from fedsr_monai.flare.startup_kit import prepare_startup_kit


class FedSRBuilder(Builder):
    """Do for the server and all sites of a project what `fedsr flare-site` does for one startup kit.

    It belongs in `project.yml` after `StaticFileBuilder`, whose files it extends, and before `SignatureBuilder`. Without `site`, each
    hospital still has to name its own data with `fedsr flare-site`.

    Args:
        site: path of every site's folder, in which `{SITE_NAME}` stands for its name.
        state: folder for the states of runs; by default `fedsr` in each startup kit.
    """

    def __init__(self, site: str | None = None, state: str | None = None) -> None:
        super().__init__()
        self.site = site
        self.state = state

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write the files below `local` of each participant."""
        prepare_startup_kit(Path(ctx.get_ws_dir(project.get_server())), None, self.state)
        for client in project.get_clients():
            prepare_startup_kit(Path(ctx.get_ws_dir(client)), self.site, self.state)
