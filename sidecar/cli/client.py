"""``px-sidecar client``: print the client for Python apps as one file."""

import sys
from pathlib import Path

import click

from sidecar.client import Client

__all__ = ["client"]


@click.command()
def client() -> None:
    """Print the client for Python apps: one file, standard library only.

    An app that does not want to install px-sidecar copies the file. Where
    px-sidecar is installed, `from px_sidecar_client import Client` works
    without it.

    \b
    Example:
      px-sidecar client > px_sidecar_client.py
    """
    # Where it is depends: beside the package if that was installed, inside it in a checkout.
    source = Path(str(sys.modules[Client.__module__].__file__))
    click.echo(source.read_bytes(), nl=False)
