"""A stand-in for Gainsight PX, as strict as what is known of it allows, that can fail in every way PX can.

It imports only ``sidecar.http`` and ``sidecar.clock``: the judge shares no code with the judged.

PX's side (``facts/px_and_sdks.md`` 1): ``POST`` and ``GET /v1/events/custom``; ``/v1/users`` and ``/v1/accounts``. A
request is judged in this order: scripted faults, key (401), limits (429), permission (403), then path and body.

The control path needs no key and counts in no figure:

=========================== ==========================================================================================
``GET /sandbox/report``     the figures; ``?key=attributes.seq`` says what tells events apart
``GET /sandbox/log``        requests in order of arrival; ``?start=0&limit=1000`` (at most 10,000 at a time)
``GET /sandbox/events``     every stored event in order of arrival, one line of JSON each
``GET /sandbox/faults``     the faults that are on
``POST /sandbox/faults``    a JSON object with the faults to change; outages count from now (fields: ``faults.Faults``)
``DELETE /sandbox/faults``  a good day again
``POST /sandbox/reset``     forget requests, events and people
=========================== ==========================================================================================

For tests and benchmarks: ``Sandbox(...)`` with ``.report()``, ``.events``, ``.log()``, ``.set_faults(...)``, served by
``serve_sandbox(sandbox, port=0)`` in a nursery (``nursery.start`` gives the base URL) or, stream by stream, by
``sandbox.connection(stream)``.
"""

from sidecar.sandbox.faults import Faults, Outage
from sidecar.sandbox.journal import LogEntry
from sidecar.sandbox.report import Report
from sidecar.sandbox.server import DEFAULT_KEY, READ_ONLY_KEY, Sandbox, serve_sandbox

__all__ = ["DEFAULT_KEY", "READ_ONLY_KEY", "Faults", "LogEntry", "Outage", "Report", "Sandbox", "serve_sandbox"]
