"""A user's Python file: run it, find its functions, and name the line when something in it goes wrong.

Running the file is running its author's code, with the user's rights: it is done only for a file the user named.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from dunwu.types import DunwuError


class UserFile:
    """A loaded file.

    `functions` are its public functions by name, whether defined there or imported.

    Raises:
        DunwuError: no such file, or running it fails; with FILE:LINE.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.module = _execute(self.path)
        names = (name for name in vars(self.module) if not name.startswith("_"))
        self.functions: dict[str, Callable[..., Any]] = {
            name: value for name in names if callable(value := getattr(self.module, name))
        }

    def line_of(self, name: str) -> int:
        """Where a function is defined in the file; 1 if it comes from elsewhere or is not there."""
        code = getattr(self.functions.get(name), "__code__", None)
        return code.co_firstlineno if code is not None and code.co_filename == str(self.path) else 1

    def fault(self, name: str, what: str, cure: str) -> DunwuError:
        """An error that names the file and the line of function `name`."""
        return DunwuError(f"{self.path}:{self.line_of(name)}: {what}", cure)

    @contextlib.contextmanager
    def calling(self, name: str) -> Iterator[None]:
        """Errors of user code inside become one line with the place that raised."""
        try:
            yield
        except DunwuError:
            raise
        except Exception as error:  # user code may raise anything
            text = complaint(self.path, error, self.line_of(name))
            raise DunwuError(text, f"correct {name}") from error


def complaint(path: Path, error: BaseException, line: int = 1) -> str:
    """`FILE:LINE: ErrorType: message`, the line being the last one of the file on the way to the error.

    Args:
        line: named when the error did not pass through the file.
    """
    if isinstance(error, DunwuError):
        return str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno or line
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno or line
    said = " ".join(str(error).split())
    return f"{path}:{line}: {type(error).__name__}: {said}" if said else f"{path}:{line}: {type(error).__name__}"


def _execute(path: Path) -> ModuleType:
    if not path.is_file():
        raise DunwuError(f"no such file: {path}", "give a Python file")
    name = f"dunwu_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DunwuError(f"{path} is not a Python file", "give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise DunwuError(complaint(path, error), "correct the file") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
