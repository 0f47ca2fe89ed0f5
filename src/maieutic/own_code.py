"""Users' own functions, named in a config as `path/to/file.py:function`: rewards, algorithms."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from maieutic.errors import ConfigError, DataError


def load_function(kind: str, where: str) -> tuple[Any, Path]:
    """What `where` names, and the file that it is in.

    Raises `ConfigError` if the file or the name is not there, `DataError` if the file cannot be run.
    """
    file, colon, name = where.rpartition(":")
    if not colon or not file.endswith(".py") or not name:
        raise ConfigError(f"{kind} {where!r}: expected 'path/to/file.py:function'")
    path = Path(file).resolve()
    if not path.is_file():
        raise ConfigError(f"{kind} {where!r}: there is no file {path}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    try:
        module = load_file(path, f"maieutic_user_file_{path.stem}_{digest}")
    # The file is the user's: whatever running it raises is a fault of the file, shown with its traceback.
    except Exception as error:
        shown = "".join(traceback.format_exception(error, limit=-3))
        raise DataError(f"{kind} {where!r}: the file cannot be run. Remedy: repair it.\n{shown}") from error
    found = getattr(module, name, None)
    if found is None:
        known = sorted(key for key, value in vars(module).items() if inspect.isfunction(value))
        raise ConfigError(f"{kind} {where!r}: the file has no {name!r}; its functions: {', '.join(known) or 'none'}")
    return found, path


def load_file(path: Path, name: str = "") -> ModuleType:
    """Execute a Python file as a module. Modules beside the file can be imported, as in a script."""
    name = name or f"maieutic_user_file_{path.stem}"
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
