"""`fedsr version`: print versions."""

from __future__ import annotations


def version() -> None:
    """Print the versions of this program and of the libraries that it runs on.

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
