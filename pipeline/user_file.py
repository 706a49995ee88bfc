"""Python files of the user's that a study or an MPI task names, as modules."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

_FOLDERS: dict[str, None] = {}
"""Where executed files were, in order."""


def execute_file(path: Path, prefix: str) -> ModuleType:
    """The file as a module, executed once for each content it had; `path` is absolute.

    It can import the modules beside it, after all that is installed: they are what `python FILE` would find, but hide
    nothing.  The module's name is made from prefix, path and content.

    Raises:
        ImportError: another folder's module of the same name as one beside it is in use in this process.
        BaseException: whatever the file raises; it is then executed anew the next time.
    """
    source = path.read_bytes()
    digest = hashlib.blake2b(str(path).encode() + b"\0" + source, digest_size=8).hexdigest()
    name = f"{prefix}_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    _admit(path.parent)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        # Compiled here and not by importlib, whose cache takes an edit within the same second for the old file.
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _admit(folder: Path) -> None:
    for stem in sorted({file.stem for file in folder.glob("*.py")} & sys.modules.keys()):
        used = Path(getattr(sys.modules[stem], "__file__", None) or "/")
        if used.parent != folder and str(used.parent) in _FOLDERS:
            raise ImportError(
                f"{folder / used.name} and {used} would be the same module {stem!r}, and the latter is in use in this "
                f"process; rename one of them, or use another process"
            )
    if str(folder) not in _FOLDERS:
        _FOLDERS[str(folder)] = None
        sys.path.append(str(folder))
