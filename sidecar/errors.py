"""Errors for people: one sentence that says what happened, to which thing, and what to do next; the commands in it.

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

Commands in the errors, hints and log lines of an instance name it, or they would act on another daemon.
"""

import re

__all__ = [
    "ConfigError",
    "Failed",
    "NotRunning",
    "SidecarError",
    "with_instance",
    "with_user_unit",
]


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


_VERB = re.compile(r"(?<=`)px-sidecar (?!--instance )")
_USER_UNIT = re.compile(r"(?<=[` ])(systemctl|journalctl) (?=(?:\w+ |--now |-u )*px-sidecar(?![@\w.-]))")
_UNIT = re.compile(r"(?<=[` ])((?:systemctl (?:\w+ |--now )*|journalctl -u )px-sidecar)(?![@\w.-])")


def with_instance(text: str, instance: str) -> str:
    """Return a text whose commands mean the daemon ``instance`` (``px-sidecar@NAME``); unchanged if there is no name.

    Commands are ``px-sidecar VERB`` after a backtick, and systemctl's and journalctl's of the unit. One that names an
    instance stays as it is, so a sentence may pass several times.
    """
    if not instance or "px-sidecar" not in text:
        return text
    text = _VERB.sub(f"px-sidecar --instance {instance} ", text)
    return _UNIT.sub(lambda found: f"{found[1]}@{instance}", text)


def with_user_unit(text: str) -> str:
    """Return a text whose commands mean the unit of a user's own service manager, ``systemctl --user``."""
    return _USER_UNIT.sub(r"\1 --user ", text)
