"""Benchmarks: the performance of px-sidecar on this machine, next to the physical limit of the machine.

Rules
-----
* Ratios count: a figure and its limit are measured in one run, alternately and several times, and medians are compared.
  Absolute figures are reported beside the ratio.
* Separate processes generate the load (``load.py``). They are not the bottleneck: the same generator against a server
  that stores nothing is one of the figures.
* The daemon is a real process with an outbox on disk; PX is the sandbox on loopback.
* Processor time, memory, context switches and bytes written are read from ``/proc``; arrivals at PX from the sandbox's
  log.
* No benchmark fails for a timing. It fails if its measurement is invalid: an event is lost, an answer is wrong.

``python -m benchmarks --help`` lists the options; the page is benchmarks/README.md.
"""
