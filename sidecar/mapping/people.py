"""``identify`` and ``group``: what is remembered of the user, and the PX users and accounts written from traits."""

from typing import Any, Final

from sidecar.mapping.model import Known, Mapped
from sidecar.mapping.rules import Rules
from sidecar.mapping.values import as_text

__all__ = ["People"]

_REMEMBERED: Final = Mapped(dropped="remembered")


class People:
    """The compiled rules for ``identify`` and ``group``."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def map(self, event: dict[str, Any], known: Known) -> Mapped:
        """What PX is asked to do, and the user's new memory."""
        account = as_text(event.get("groupId")) if event.get("type") == "group" else None
        account = account or self._rules.account_id.text(event)
        if account is None or account == known.account_id:
            return _REMEMBERED
        return Mapped(dropped="remembered", known=Known(account_id=account))
