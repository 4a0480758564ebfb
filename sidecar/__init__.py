"""px-sidecar: durable, paced delivery of product-usage events to the Gainsight PX Custom Event API.

The command is the product: ``px-sidecar --help``. What apps may import is ``px_sidecar_client``; everything else is
private to the daemon and the command. The packages and the import ladder are described in ``sidecar/README.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["__version__", "lazy_exports"]

__version__ = "0.1.0"


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of ``package`` (PEP 562): ``modules`` maps each of its modules to the names it exports.

    The daemon listens before its heavy parts are loaded, and a verb loads only what it needs. Importing one small module
    of a package runs the package's ``__init__``, which must therefore load none of its parts. A name is looked up once;
    then it is an ordinary attribute of the package.
    """
    homes = {name: module for module, names in modules.items() for name in names}
    # Importing a module sets it as an attribute of its package, in front of an export of the same name.
    assert not homes.keys() & modules.keys(), f"{package} exports a name that one of its modules has"

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home}"), name)
        setattr(import_module(package), name, value)
        return value

    return load
