"""Commands about the program itself: the demo, the benchmark, the versions."""

from __future__ import annotations

from fedsr_monai.errors import UserError


def demo(out: str = "demo") -> None:
    """Run the whole method on simulated hospitals: simulate, federate, personalise, evaluate, report."""
    raise UserError("demo is not there yet")


def benchmark(out: str = "benchmarks") -> None:
    """Measure accuracy and speed, beside classical registration."""
    raise UserError("benchmark is not there yet")


def version() -> None:
    """Print the version of this program and of what it runs on.

    Example:
        fedsr version
    """
    import importlib.metadata
    import platform

    import fedsr_monai

    print(f"fedsr-monai {fedsr_monai.__version__}")
    print(f"python {platform.python_version()}")
    for name in ("monai", "torch", "pytorch-ignite", "numpy"):
        print(f"{name} {importlib.metadata.version(name)}")
