"""px-sidecar: durable, paced delivery of product-usage events to the Gainsight PX Custom Event API.

The command is the product: ``px-sidecar --help``. What apps may import is ``sidecar.client``; everything else is
private to the daemon and the command. The rooms and the ladder between them are described in ``sidecar/daemon.py``.
"""

__version__ = "0.1.0"
