"""Where in a plugin something is, or went wrong, as FILE:LINE."""

import functools
import importlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType


def defined_at(fn: Callable) -> str:
    """FILE:LINE of a function, or of an object's `__call__`; its type where there is no source (builtins)."""
    code = _code(fn)
    return _show(code.co_filename, code.co_firstlineno) if code else f"a {type(fn).__name__}"


def failed_at(error: BaseException, fn: Callable) -> str:
    """FILE:LINE of the deepest frame of `error` in the file or package of `fn`, else where `fn` stands."""
    code = _code(fn)
    return (code and _deepest(traceback.extract_tb(error.__traceback__), code.co_filename)) or defined_at(fn)


def import_failed_at(error: BaseException) -> str:
    """FILE:LINE of the deepest frame of `error` in the first file or package that was being imported."""
    if isinstance(error, SyntaxError) and error.filename:
        return _show(error.filename, error.lineno or 1)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _imports(frame.filename)]
    return (frames and _deepest(frames, frames[0].filename)) or "in no file"


def _code(fn: Callable) -> CodeType | None:
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    return getattr(fn, "__code__", None) or getattr(type(fn).__call__, "__code__", None)


def _deepest(frames: list[traceback.FrameSummary], file: str) -> str:
    path = Path(file)
    root = path.parent if (path.parent / "__init__.py").exists() else path
    own = [frame for frame in frames if root in (Path(frame.filename), *Path(frame.filename).parents)]
    return _show(own[-1].filename, own[-1].lineno) if own else ""


def _imports(file: str) -> bool:
    """Whether a frame is one of the import machinery's, or ours that called it."""
    return file.startswith("<frozen") or file == importlib.__file__ or Path(file).parent == Path(__file__).parent


def _show(file: str, line: int) -> str:
    path = Path(file)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"
