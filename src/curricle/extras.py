"""Optional packages and compilers.

A package of an extra is imported where it is used; a compiler is looked for before it is needed.
The error about a missing one names the command that installs it.
"""

import importlib
import importlib.metadata
import shutil
from types import ModuleType

from curricle.errors import BindError

COMPILERS = {"cpu": ("g++", "clang++"), "cuda": ("gcc", "clang", "cc")}
"""Programs of which torch needs one to compile, by kind of processor."""


def imported(module: str, *, package: str, extra: str, use: str) -> ModuleType:
    """Return a module that may not be importable.

    Args:
        module: Name of the module: the package itself, or a module of curricle that needs it.
        package: The package that may be missing.
        extra: The extra of curricle that installs it.
        use: Purpose of the package, for the error.

    Raises:
        BindError: If the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BindError(
            f"{package!r} must be installed for {use}: pip install 'curricle[{extra}]' ({error})"
        ) from None


def package_version() -> str:
    """Return the version of curricle; `unknown` where its source is used without an installation.

    A folder in the path has no metadata.
    """
    try:
        return importlib.metadata.version("curricle")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def check_compiler(kind: str, *, setting: str, plain: object) -> None:
    """Check that torch finds a compiler.

    Args:
        kind: Kind of processor that runs compiled code.
        setting: Name of the setting that needs it.
        plain: Value of the setting that needs none.

    Raises:
        BindError: If there is none.
    """
    names = COMPILERS.get(kind, ())
    if not any(shutil.which(name) for name in names):
        raise BindError(
            f"{setting!r} must be {plain} on a machine without a compiler; none of "
            f"{', '.join(names)} is in the path; on Debian, 'apt-get install g++' brings one"
        )
