"""px-sidecar: durable, paced delivery of product-usage events to the Gainsight PX Custom Event API.

The command is the product: ``px-sidecar --help``. What apps may import is ``px_sidecar_client``; everything else is
private to the daemon and the command. The packages and the import ladder are described in ``sidecar/README.md``.
"""

__version__ = "0.1.0"
