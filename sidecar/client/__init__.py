"""The client for apps, ``px_sidecar_client``, under the name that it has inside this package.

An installed px-sidecar has ``px_sidecar_client`` as a module of its own, so that an app needs one import whether it
installed the package or copied the file (``px-sidecar client``). Both names give the same classes. sidecar/client/README.md
is the page for app developers.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.client.px_sidecar_client import AsyncClient, Client, NotAccepted, NullClient, Unavailable
else:
    try:
        from px_sidecar_client import AsyncClient, Client, NotAccepted, NullClient, Unavailable
    except ModuleNotFoundError:  # a checkout, where nothing has been installed
        from sidecar.client.px_sidecar_client import AsyncClient, Client, NotAccepted, NullClient, Unavailable

__all__ = ["AsyncClient", "Client", "NotAccepted", "NullClient", "Unavailable"]
