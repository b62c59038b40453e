"""What if a package is needed that only an extra installs?

Then it is imported where it is used, and who lacks it is told what to install.
"""

import importlib
from types import ModuleType

from curricle.errors import BindError


def imported(module: str, *, package: str, extra: str, use: str) -> ModuleType:
    """Return a module that may not be importable.

    Args:
        module: What to import: the package itself, or a module of ours that needs it.
        package: The package that may be missing.
        extra: The extra of curricle that installs it.
        use: What the package is needed for.

    Raises:
        BindError: If the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BindError(
            f"{package!r} must be installed for {use}: pip install 'curricle[{extra}]' ({error})"
        ) from None
