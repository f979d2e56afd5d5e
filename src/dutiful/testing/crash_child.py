"""The process that `crash_at` lets die: it reads from its standard input what to call."""

import base64
import importlib
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> None:
    """Call it."""
    order: dict[str, Any] = json.load(sys.stdin)
    sys.path[:] = order["path"]
    function: Any = _module(order["module"], Path(order["file"]))
    for name in order["name"].split("."):
        function = getattr(function, name)
    function(*pickle.loads(base64.b64decode(order["args"])))  # noqa: S301  # from our own parent


def _module(name: str, file: Path) -> ModuleType:
    """Return the function's module: by its name, or if that leads elsewhere, from its file."""
    if name == "__main__":
        name = "__mp_main__"  # as for multiprocessing: what is under `if __name__ == "__main__"` is not run
    else:
        try:
            found = importlib.import_module(name)
        except ImportError:
            pass  # a test that pytest has imported by its path
        else:
            if Path(found.__file__ or "").resolve() == file.resolve():
                return found
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
