"""Benchmarks: what px-sidecar does on this machine, beside what is physically possible on it.

Rules
-----
* What counts is a ratio: a figure and its limit are measured in one run, one right after the other, several times in
  turn, and medians are compared. Absolute figures are reported beside it.
* The load is made by processes of their own (``load.py``), which were checked not to be the bottleneck: the same
  generator against the server that stores nothing is one of the figures.
* The daemon is the real one, in a process of its own with an outbox on disk; PX is the sandbox on loopback.
* What the kernel knows is read from the kernel: processor time, memory, context switches and bytes written of a
  process come from ``/proc``, arrivals at PX from the sandbox's log.
* No benchmark fails for a timing. It fails if it does not measure what it says: an event lost, a wrong answer.

``python -m benchmarks --help`` says how to run them.
"""
