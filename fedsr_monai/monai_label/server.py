"""Start MONAI Label's server on a folder of scans."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from fedsr_monai.errors import UserError
from fedsr_monai.monai_label.app import make_app, require_monai_label

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    studies: str | os.PathLike,
    out: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    site: str | os.PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    protocol: str | None = None,
) -> None:
    """Turn this process into MONAI Label's server; does not return.

    For a PACS, only MR series are listed, and MONAI Label caches them in the app folder, unless its own environment
    variables say otherwise.

    Raises:
        UserError: MONAI Label is not installed here, the folder of scans does not exist, a PACS has no `out`, the port is taken,
            or the app cannot be made (see `make_app`).
    """
    require_monai_label()
    settings = {}
    if is_url(studies):
        if out is None:
            raise UserError("--out", found="nothing", expected="a folder, for the scans of a PACS", fix="add it")
        app = Path(out).absolute()
        settings = {
            "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}',
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(app / "dicom"),
        }
    else:
        studies = Path(studies).absolute()
        if not studies.is_dir():
            raise UserError(studies, found="no such folder", expected="one with NIfTI scans", fix="check the path")
        app = studies.with_name(f"{studies.name}-label") if out is None else Path(out).absolute()
    check_port(host, port)
    bundle = make_app(app, weights, site, protocol)
    print(f"{bundle}: the copy of the bundle that is served; training writes its models/model.pt")
    if host not in LOOPBACK:
        print(
            f"{host}:{port}: everyone who can reach this address can read the scans; MONAI Label does not ask for a password by default"
        )
    print(f"http://{host}:{port} is the address for 3D Slicer; stop with Ctrl-C", flush=True)
    # MONAI Label's converter to DICOM SEG lies beside this Python, whether its environment is active or not.
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    startup = str(Path(__file__).with_name("startup"))
    path = os.pathsep.join(part for part in (startup, os.environ.get("PYTHONPATH")) if part)
    arguments = ["start_server", "--app", str(app), "--studies", str(studies), "--host", host, "--port", str(port)]
    command = [sys.executable, "-m", "monailabel.main", *arguments]
    os.execve(sys.executable, command, settings | os.environ | {"PYTHONPATH": path, "PATH": programs})


def is_url(studies: str | os.PathLike) -> bool:
    """Return whether scans come from a PACS (DICOMweb) instead of a folder."""
    return str(studies).startswith(("http://", "https://"))


def check_port(host: str, port: int) -> None:
    """Refuse an address on which no server can listen.

    Raises:
        UserError: the port is taken, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{host}:{port}", found=str(reason), expected="a free port", fix="choose another --host or --port"
        ) from None
