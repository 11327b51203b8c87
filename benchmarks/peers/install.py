"""Make the peers' environments: `python benchmarks/peers/install.py [--rebuild] [name ...]`; without names, all.

Each folder with a ``requirements.txt`` gets a ``.venv`` of its own, since the peers' pins clash. PyTorch goes first and
alone: on Linux without an NVIDIA GPU, where pip is not configured with an index of its own, from PyTorch's CPU wheels,
so that a peer has the same build as we have. Exit code 1 where a peer could not be installed; the others are.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OWN_INDEX = ("index-url", "find-links", "no-index")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="folders of benchmarks/peers; none: all")
    parser.add_argument("--rebuild", action="store_true", help="make environments anew that are there already")
    given = parser.parse_args()
    known = sorted(path.parent.name for path in HERE.glob("*/requirements.txt"))
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"there is no peer {unknown[0]!r} to install; choose from {', '.join(known)}")
    failed = [name for name in given.names or known if not install(HERE / name, rebuild=given.rebuild)]
    if failed:
        print(f"Could not be installed: {', '.join(failed)}. See pip's words above.", file=sys.stderr)
    return 1 if failed else 0


def install(home: Path, *, rebuild: bool) -> bool:
    """Whether the environment of a peer is there at the end. One that is half made is taken away."""
    folder, requirements = home / ".venv", home / "requirements.txt"
    done = folder / ".installed"  # holds the requirements it was made from
    if not rebuild and done.exists() and done.read_text(encoding="utf-8") == requirements.read_text(encoding="utf-8"):
        print(f"{home.name}: is there")
        return True
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{home.name}: installing", flush=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    lines = requirements.read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    steps = [[*pip, torch, *_torch_index(pip[:3])], [*pip, "-r", str(requirements)]]
    if any(subprocess.run(step, check=False).returncode for step in steps):
        shutil.rmtree(folder, ignore_errors=True)
        return False
    done.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return True


def _torch_index(pip: list[str]) -> list[str]:
    if not sys.platform.startswith("linux") or shutil.which("nvidia-smi"):
        return []
    configured = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    return [] if any(word in configured for word in OWN_INDEX) else ["--extra-index-url", TORCH_CPU_INDEX]


if __name__ == "__main__":
    sys.exit(main())
