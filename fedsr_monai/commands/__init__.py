"""The commands of `fedsr`: plain functions whose signatures define the options and whose docstrings are the help.

These modules only take the arguments and print the results; the work is done in the other subpackages.
"""

from __future__ import annotations

from collections.abc import Callable

from fedsr_monai.commands.benchmark import benchmark
from fedsr_monai.commands.check import check
from fedsr_monai.commands.demo import demo
from fedsr_monai.commands.evaluate import evaluate
from fedsr_monai.commands.export_job import export_job
from fedsr_monai.commands.federate import federate
from fedsr_monai.commands.flare_site import flare_site
from fedsr_monai.commands.label import label
from fedsr_monai.commands.personalise import personalise
from fedsr_monai.commands.prepare import prepare
from fedsr_monai.commands.pretrain import pretrain
from fedsr_monai.commands.privacy import privacy
from fedsr_monai.commands.report import report
from fedsr_monai.commands.segment import segment
from fedsr_monai.commands.simulate import simulate
from fedsr_monai.commands.study import study
from fedsr_monai.commands.version import version

COMMANDS: dict[str, Callable[..., None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        demo,
        simulate,
        prepare,
        check,
        federate,
        personalise,
        evaluate,
        segment,
        label,
        report,
        export_job,
        flare_site,
        privacy,
        study,
        benchmark,
        pretrain,
        version,
    )
}
