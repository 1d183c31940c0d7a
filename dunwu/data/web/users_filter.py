"""A user's own filter: one small Python file with a function `keep`.

Example of such a file:
    def keep(text, record):
        return "casino" not in text.lower() or "casino"     # True keeps; a text is the reason to drop

The file is the user's own code and runs as such; nothing of it is read from data.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dunwu.types import UsageError

Reason = Callable[[str, Mapping[str, Any]], "str | None"]
SHAPE = "write `def keep(text, record): return True`, or False, or a reason"


@lru_cache(maxsize=4)
def load_filter(path: str) -> Reason:
    """The file's `keep` as a function from (text, record) to a reason or None.

    Raises:
        UsageError: no file, no function, or one that fails; the line is named.
    """
    path = str(Path(path).resolve())  # tracebacks have whole names
    keep = _load(Path(path))

    def reason(text: str, record: Mapping[str, Any]) -> str | None:
        try:
            answer = keep(text, record)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the user's code may raise anything; it is told with its line)
            raise UsageError(
                f"{_where(error, path)} failed on page {record.get('id')}: {_said(error)}", SHAPE
            ) from None
        if answer is True:
            return None
        if answer is False:
            return "users_filter"
        if isinstance(answer, str) and answer:
            return answer
        raise UsageError(f"{path}: keep answered {answer!r} for page {record.get('id')}", SHAPE)

    return reason


def _load(path: Path) -> Callable[..., Any]:
    if not path.is_file():
        raise UsageError(f"no file {path}", "check --filter")
    spec = importlib.util.spec_from_file_location("users_filter", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file", SHAPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}", SHAPE) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  (as above)
        raise UsageError(f"{_where(error, str(path))}: {_said(error)}", SHAPE) from None
    keep = getattr(module, "keep", None)
    if not callable(keep):
        raise UsageError(f"{path} has no function keep", SHAPE)
    return keep  # type: ignore[no-any-return]


def _where(error: BaseException, path: str) -> str:
    """FILE:LINE of the innermost frame that is the user's."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
