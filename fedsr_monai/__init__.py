"""FedSR on MONAI: one-shot federated brain MRI registration and segmentation.

The names below are what a notebook or a script needs; each is imported when it is first used:

>>> import fedsr_monai as fm
>>> sorted(fm.__all__)  # doctest: +NORMALIZE_WHITESPACE
['FedSRNet', 'check_site', 'evaluate', 'federate', 'personalise', 'prepare_site', 'segment', 'simulate_sites',
 'write_report']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "FedSRNet": "fedsr_monai.networks",
    "check_site": "fedsr_monai.sites.check",
    "evaluate": "fedsr_monai.evaluation.run",
    "federate": "fedsr_monai.federation.runner",
    "personalise": "fedsr_monai.personalisation",
    "prepare_site": "fedsr_monai.prepare.site",
    "segment": "fedsr_monai.inference.segment",
    "simulate_sites": "fedsr_monai.simulation.sites",
    "write_report": "fedsr_monai.report",
}
__all__ = [
    "FedSRNet",
    "check_site",
    "evaluate",
    "federate",
    "personalise",
    "prepare_site",
    "segment",
    "simulate_sites",
    "write_report",
]

if TYPE_CHECKING:
    from fedsr_monai.evaluation.run import evaluate
    from fedsr_monai.federation.runner import federate
    from fedsr_monai.inference.segment import segment
    from fedsr_monai.networks import FedSRNet
    from fedsr_monai.personalisation import personalise
    from fedsr_monai.prepare.site import prepare_site
    from fedsr_monai.report import write_report
    from fedsr_monai.simulation.sites import simulate_sites
    from fedsr_monai.sites.check import check_site


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `import fedsr_monai` alone is fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
