"""Where our own files are: the built-in configs, and the scripts beside the package."""

from __future__ import annotations

from pathlib import Path

from datamap.core.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
# An installed package holds them; in a checkout they lie beside it.
EXAMPLES = PACKAGE / "example_configs" if (PACKAGE / "example_configs").is_dir() else CHECKOUT / "example_configs"


def script_file(name: str) -> Path:
    """The path of a script, such as ``run.py``; UserError where the package was installed without them."""
    file = CHECKOUT / name
    if not file.is_file():
        raise UserError(f"{name} is not beside the package ({CHECKOUT}): start from a checkout of the repository")
    return file
