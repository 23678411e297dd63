"""Where our own files are: the built-in configs, and the scripts beside the package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from datamap.core.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
# An installed package holds them; in a checkout they lie beside it.
EXAMPLES = next(parent / "example_configs" for parent in (PACKAGE, CHECKOUT) if
                (parent / "example_configs").is_dir() or parent == CHECKOUT)


def script_file(name: str) -> Path:
    """The path of a script, such as ``run.py``; UserError where the package was installed without them."""
    file = CHECKOUT / name
    if not file.is_file():
        raise UserError(f"{name} is not beside the package ({CHECKOUT}): start from a checkout of the repository")
    return file


def load_script(name: str) -> ModuleType:
    """A script as a module; for who carries it out in this process, by its ``main``."""
    module = Path(name).stem
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, script_file(name))
        assert spec is not None and spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return sys.modules[module]
