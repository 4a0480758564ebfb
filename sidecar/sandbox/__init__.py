"""A stand-in for Gainsight PX: as strict as the known facts allow, with every fault that PX can have.

It imports only ``sidecar.http`` and ``sidecar.clock``: it checks the daemon, so it shares no code with it. What it
accepts, in which order it judges, and what is a choice of this package: sidecar/sandbox/README.md#contract.

PX's side: ``POST`` and ``GET /v1/events/custom``; ``/v1/users`` and ``/v1/accounts``. A request is judged in this
order: injected faults, key (401), limits (429), permission (403), path and body.

The control paths need no key and appear in no figure:

=========================== ==========================================================================================
``GET /sandbox/report``     the figures; ``?key=attributes.seq`` names the field that identifies an event
``GET /sandbox/log``        requests in order of arrival; ``?start=0&limit=1000`` (at most 10,000 per page)
``GET /sandbox/events``     every stored event in order of arrival, one line of JSON each
``GET /sandbox/faults``     the faults in force
``POST /sandbox/faults``    a JSON object with the faults to change; outages start now (fields: ``faults.Faults``)
``DELETE /sandbox/faults``  remove all faults
``POST /sandbox/reset``     forget requests, events, users and accounts
=========================== ==========================================================================================

For tests and benchmarks: ``Sandbox(...)`` with ``.report()``, ``.events``, ``.log()``, ``.set_faults(...)``, served by
``serve_sandbox(sandbox, port=0)`` in a nursery (``nursery.start`` returns the base URL) or, for a single stream, by
``sandbox.connection(stream)``.
"""

from sidecar.sandbox.faults import Faults, Outage
from sidecar.sandbox.journal import LogEntry
from sidecar.sandbox.open_answers import OpenAnswers
from sidecar.sandbox.report import Report
from sidecar.sandbox.server import DEFAULT_KEY, READ_ONLY_KEY, Sandbox, serve_sandbox

__all__ = [
    "DEFAULT_KEY",
    "READ_ONLY_KEY",
    "Faults",
    "LogEntry",
    "OpenAnswers",
    "Outage",
    "Report",
    "Sandbox",
    "serve_sandbox",
]
