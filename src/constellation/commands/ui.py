"""Open the MLflow UI on the tracked runs, until Ctrl-C.

The server listens on this machine only (127.0.0.1). Where `port` is taken, the next free one is used. With
`tracking.uri` another database is shown; a tracking server elsewhere has its own UI, whose address is then printed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from constellation.errors import InputError
from constellation.tracking import NullTracking, Tracking, quiet_libraries

HOST = "127.0.0.1"


def ui(*, tracking: Tracking | NullTracking, port: int = 5000) -> None:
    """Serve the UI in the foreground. Raises InputError when there is nothing to show."""
    if isinstance(tracking, NullTracking):
        raise InputError("The UI shows what MLflow tracks, and with tracking=none that is nothing.")
    uri = tracking.resolved_uri()
    if uri.startswith(("http://", "https://")):
        print(f"The runs live on a server of their own. Open {uri}", flush=True)
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError(
            f"There is no database {uri.removeprefix('sqlite:///')}. Run `constellation train` here first, go to the "
            "folder where it ran, or name another with tracking.uri=sqlite:////path/to/mlflow.db."
        )
    port = free_port(port)
    print(f"MLflow UI at http://{HOST}:{port} (Ctrl-C ends it; the start takes some ten seconds)", flush=True)
    server = subprocess.Popen(server_command(uri, port), env=server_environment())
    try:
        code = server.wait()
    finally:  # Ctrl-C reaches the server too; SIGTERM reaches only us
        if server.poll() is None:
            server.terminate()
            server.wait()
    if code != 0:
        raise RuntimeError(f"The MLflow server ended with exit code {code}.")


def server_command(uri: str, port: int) -> list[str]:
    """The command line of an MLflow server on the loopback address, with one worker process."""
    server = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    return [*server, "--backend-store-uri", uri, "--default-artifact-root", "./mlruns"]


def server_environment() -> dict[str, str]:
    """Our environment, telemetry off, with this Python's scripts on the path: MLflow looks for its web server there."""
    quiet_libraries()
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore"}  # those of MLflow's own libraries


def free_port(wanted: int, tries: int = 50) -> int:
    """The first free port at or above the wanted one. Raises InputError when there is none among `tries`."""
    for port in range(wanted, min(wanted + tries, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise InputError(f"No port from {wanted} on is free. Choose another with port=...")
