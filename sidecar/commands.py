"""Commands in sentences: hints, errors and log lines of an instance name it, or they would act on another daemon."""

import re

__all__ = ["with_instance", "with_user_unit"]

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
