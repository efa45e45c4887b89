"""Keep the source code of this package out of jobs, because the package is installed at every site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # only those who make a job need it, not the processes that run one
    from nvflare.job_config.api import FedJob, JobCtx

PACKAGE = "fedsr_monai"


class Installed:
    """A component of a FLARE job whose class is installed at the sites.

    `FedJob` copies the source of every class that is not FLARE's own into the job, unless its package is declared as installed, and
    sites rightly refuse jobs with code. This class makes the declaration when the component is added; it must stand before
    FLARE's own base class.
    """

    def add_to_fed_job(self, job: FedJob, ctx: JobCtx, **kwargs: Any) -> Any:
        """Declare this package as installed, and add the component; FLARE's `FedJob.to` calls this."""
        job.set_app_packages(sorted({*job.job.app_packages, PACKAGE}))
        inherited = getattr(super(), "add_to_fed_job", None)
        if inherited is not None:
            return inherited(job, ctx, **kwargs)
        return job.add_component(ctx.comp_id, self, ctx)
