"""The console: a page for people who would rather look, served by a process of its own (sidecar/console/README.md)."""

from sidecar.console.server import Console, Options

__all__ = ["Console", "Options"]
