"""Every error a person may read: one sentence that says what happened, to which thing, and what to do next.

A class here is a kind of ending, not a place in the code. ``exit_code`` is what the command exits with when the error
reaches its top (DESIGN: 0 done; 1 it failed, a supervisor may retry; 2 wrong usage; 69 the daemon is not running; 78
starting again is pointless until somebody changes something).
"""

__all__ = ["ConfigError", "Failed", "NotRunning", "SidecarError"]


class SidecarError(Exception):
    """The base of all errors that are told to a person without a traceback."""

    exit_code = 1


class Failed(SidecarError):
    """Something outside did not play along: a socket in use, a lock held, a folder not writable."""

    exit_code = 1


class NotRunning(SidecarError):
    """The daemon that this verb needs is not running, or not reachable at its control socket."""

    exit_code = 69


class ConfigError(SidecarError):
    """The configuration, the key or the outbox file makes starting pointless."""

    exit_code = 78
