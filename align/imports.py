"""Objects by dotted name, and the place in a user's file where something is or went wrong. No torch at import."""

import difflib
import functools
import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any


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
    """Return True where a frame is the import machinery's, or that of align which called it."""
    return file.startswith("<frozen") or file == importlib.__file__ or Path(file).parent == Path(__file__).parent


def _show(file: str, line: int) -> str:
    path = Path(file)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


def resolve(name: str) -> Callable:
    """The callable at "module.function", imported.

    Raises ValueError, one line that begins with `fn=`: no such module or attribute (with the nearest names), a module
    that raises when it is imported (with file and line), or something that cannot be called.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(f"fn={name} names no module: use MODULE.FUNCTION, such as my_rewards.brevity")
    module = _module(module_name, name)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        near = _near(name, [key for key in dir(module) if not key.startswith("_")])
        file = getattr(module, "__file__", None) or "a folder without __init__.py"
        raise ValueError(f"fn={name}: {module_name} ({file}) has no {attribute}{near}") from None
    except Exception as error:  # a module that imports its parts at first use
        raise ValueError(_broken(name, error)) from error
    return called(found, name)


def called(found: object, name: str) -> Callable:
    """`found`, a function or an object that can be called; ValueError for anything else, a class too."""
    if isinstance(found, type):
        raise ValueError(
            f"fn={name} is a class: name a function, or make an object of it in a yaml:"
            f" `fn: {{_target_: {found.__module__}.{found.__qualname__}}}`"
        )
    if not callable(found):
        raise ValueError(f"fn={name} cannot be called, it is {type(found).__name__}: name a function")
    return found


def _module(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module_name}.".startswith(f"{missing}."):  # the module is there; what it imports is not
            raise ValueError(_broken(name, error)) from error
        raise ValueError(
            f"fn={name}: no module {missing} in the folder you stand in, in ./plugins/NAME, or among"
            f" what is installed{_near(missing, _modules_beside(missing))}"
        ) from None
    except Exception as error:
        raise ValueError(_broken(name, error)) from error


def _broken(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return f"fn={name}: its import raised {type(error).__name__}: {reason} ({import_failed_at(error)})"


def _modules_beside(missing: str) -> list[str]:
    """Names of the modules that stand where `missing` was looked for."""
    parent, _, _ = missing.rpartition(".")
    if parent:
        found = pkgutil.iter_modules(getattr(importlib.import_module(parent), "__path__", []))
    else:
        here = [str(folder) for folder in (Path.cwd(), *Path.cwd().glob("plugins/*/"))]
        found = [*pkgutil.iter_modules(here), *pkgutil.iter_modules()]
    return [module.name for module in found]


def _near(wanted: str, names: list[str]) -> str:
    """A question after the nearest of `names`, which stand beside `wanted`; empty if none is near."""
    parent, dot, last = wanted.rpartition(".")
    close = difflib.get_close_matches(last, names, n=1)
    return f"; did you mean {parent}{dot}{close[0]}?" if close else ""


def locate(name: str) -> Any:
    """The object at a dotted name; raises what its import raises, which Hydra's own look-up logs and wraps."""
    home, _, last = name.rpartition(".")
    if not home:
        raise ImportError(f"{name} names no module")
    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        inside = "." in home and error.name and f"{home}.".startswith(f"{error.name}.")
        if not inside:
            raise
        module = locate(home)
    return getattr(module, last)
