"""From `module:worker` or `path/to/file.py:worker` to the Worker."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from dutiful.cli import codes
from dutiful.cli.text import clean

if TYPE_CHECKING:
    from types import ModuleType

    from dutiful import Worker


def load(target: str) -> Worker:
    """
    Import what `target` names, with the current folder on the path.

    Raises:
        Refused: It cannot be imported, or is no Worker; says what was found.
    """
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        raise codes.Refused(f"{target!r} names no worker; write module:worker or path/to/file.py:worker.")
    module = _imported(place)
    found: object = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise codes.Refused(f"{place} has no {attribute!r}{_workers_in(module, place)}") from None
    from dutiful import Worker

    if not isinstance(found, Worker):
        raise codes.Refused(f"{target} is no Worker but {_described(found)}{_workers_in(module, place)}")
    return found


def file_of(target: str) -> Path | None:
    """Return the file that `target` names, if it names one and not a module."""
    place = target.rpartition(":")[0]
    return Path(place) if place.endswith(".py") or os.sep in place else None


def _imported(place: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    file = file_of(f"{place}:")
    try:
        return importlib.import_module(place) if file is None else _imported_file(file)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            hint = f" Is it a file? Write ./{place}:…" if Path(place).is_file() else ""
            raise codes.Refused(
                f"there is no module {place!r} in {Path.cwd()} or on Python's path.{hint}"
            ) from error
        raise _failed(place, error) from error
    except Exception as error:
        raise _failed(place, error) from error


def _imported_file(file: Path) -> ModuleType:
    path = file.resolve()
    if not path.is_file():
        raise codes.Refused(f"there is no file {file}.")
    # By its own name, from its own folder, as `python file.py` would: it finds its neighbours, and
    # child processes for process=True handlers can import it.
    sys.path.insert(0, str(path.parent))
    known = sys.modules.get(path.stem)
    if known is None and importlib.util.find_spec(path.stem) is not None:
        module = importlib.import_module(path.stem)
        if _is_from(module, path):
            return module
    elif known is not None and _is_from(known, path):
        return known
    raise codes.Refused(f"{file} has the name of another module, {path.stem!r}; rename the file.")


def _is_from(module: ModuleType, path: Path) -> bool:
    return module.__file__ is not None and Path(module.__file__).resolve() == path


def _failed(place: str, error: Exception) -> codes.Refused:
    """Say where the user's own code failed: the innermost line of it that we know."""
    if isinstance(error, codes.Refused):
        return error
    if isinstance(error, SyntaxError) and error.filename:
        text, where = error.msg, f"{error.filename}, line {error.lineno}"
    else:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
        ]
        text, where = str(error), f"{frames[-1].filename}, line {frames[-1].lineno}"
    return codes.Refused(
        f"{place} cannot be imported: {type(error).__name__}: {text} ({where}). --traceback shows all of it."
    )


def _described(found: object) -> str:
    kind = type(found)
    what = (
        f"a {kind.__module__}.{kind.__qualname__}"
        if kind.__module__ != "builtins"
        else f"a {kind.__qualname__}"
    )
    return clean(f"the class {found.__module__}.{found.__qualname__}" if isinstance(found, type) else what)


def _workers_in(module: ModuleType, place: str) -> str:
    from dutiful import Worker

    names = [name for name, value in vars(module).items() if isinstance(value, Worker)]
    if not names:
        return "; there is no Worker in it."
    return "; it has: " + ", ".join(f"{place}:{name}" for name in names) + "."
