"""Public names of packages, imported on first use (PEP 562).

The init of a package lists the module of each public name. Users write
`from curricle.objectives import Learned` without the path of the module, and nothing is imported
before a name is used: records, reports and the help of the command line work without torch.

Design: an init has its names twice, in a table for the interpreter and as imports under
`TYPE_CHECKING` for type checkers and editors; a test compares both. The library lazy-loader reads a
stub file beside each init instead. That is one list, but also a dependency, a second file for each
package that must be there at run time, and no sentence for renamed names; the code below is
shorter than what it would save.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from curricle.renamed import RENAMED

Names = tuple[list[str], Callable[[str], object], Callable[[], list[str]]]
"""`__all__`, `__getattr__` and `__dir__` of a package."""


def public_names(package: str, table: Mapping[str, Sequence[str]]) -> Names:
    """Return `__all__`, `__getattr__` and `__dir__` of a package.

    No name may be that of a module of the package: the import of the module would replace it.

    Args:
        package: Name of the package, `__name__` in its init.
        table: Public names by module; modules are named relative to the package.
    """
    homes = {name: f"{package}.{module}" for module, names in table.items() for name in names}

    def getattr_(name: str) -> object:
        if name in homes:
            # Not stored in the package, so that a module that is reloaded or patched counts.
            return getattr(import_module(homes[name]), name)
        new = RENAMED.get(name)
        hint = f"; it is now named {new!r}" if new in homes else ""
        sentence = f"module {package!r} has no attribute {name!r}{hint}"
        # With name and object the interpreter adds near names to the traceback.
        raise AttributeError(sentence, name=name, obj=sys.modules[package])

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return sorted(homes), getattr_, dir_
