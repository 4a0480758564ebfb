"""Errors for people: one sentence that says what happened, to which thing, and what to do next.

A class stands for a way to end, not for a place in the code. The command line prints the sentence without a traceback
and exits with ``exit_code``:

====  ================================================================================================================
0     done
1     the operation failed; a supervisor may retry
2     wrong usage (by click)
69    the daemon is not running (EX_UNAVAILABLE of sysexits.h)
78    starting again is pointless until an operator changes something (EX_CONFIG of sysexits.h)
====  ================================================================================================================

``px-sidecar.service`` restarts the daemon after every exit code except 78 (systemd/README.md#units). So an error that
time can cure must never be a ConfigError: the daemon would stay down. The reverse would restart it in a loop.
"""

__all__ = ["ConfigError", "Failed", "NotRunning", "SidecarError"]


class SidecarError(Exception):
    """The base of all errors that are shown to a person without a traceback.

    ``is_logged`` is set where the log has the sentence already: it is not printed again.
    """

    exit_code = 1
    is_logged = False


class Failed(SidecarError):
    """An external condition prevented the operation: a socket in use, a lock held, a folder that is not writable."""

    exit_code = 1


class NotRunning(SidecarError):
    """The daemon that this verb needs is not running, or not reachable at its control socket."""

    exit_code = 69


class ConfigError(SidecarError):
    """The configuration, the key or the outbox file makes a start pointless."""

    exit_code = 78
