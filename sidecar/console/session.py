"""Access to the console: one-time codes, and the tokens that a page gets for them. Pure; time is an argument.

Rules
-----
* A code is used once, within ``CODE_S``. It is printed in the terminal and travels in the fragment of a URL, which a
  browser never sends, so a code in a browser's history or in a proxy's log is worth nothing.
* A page keeps its token in ``sessionStorage``. There is no cookie: a browser sends the cookies of 127.0.0.1:A to
  127.0.0.1:B, whatever SameSite says, because a site has no port.
* After ``MAX_WRONG`` wrong codes no code is accepted for a minute: 2^192 codes cannot be guessed anyway, and the log of
  attempts stays short.
"""

import hashlib
import secrets
from typing import Final

__all__ = ["IDLE_S", "Sessions", "TooManyGuesses"]

CODE_S: Final = 900.0
IDLE_S: Final = 1_800.0
MAX_WRONG: Final = 20
WRONG_WINDOW_S: Final = 60.0


class TooManyGuesses(Exception):
    """Too many wrong codes in a minute."""


class Sessions:
    """Codes that wait to be used, and the tokens of open pages. Only digests are kept."""

    def __init__(self, now_s: float) -> None:
        self._codes: dict[bytes, float] = {}
        self._tokens: set[bytes] = set()
        self._wrong_s: list[float] = []
        self._used_s = now_s

    def new_code(self, now_s: float) -> str:
        """Return a code that can be redeemed once."""
        code = secrets.token_urlsafe(24)
        self._codes[_digest(code)] = now_s
        return code

    def redeem(self, code: str, now_s: float) -> str | None:
        """Return a token for a valid code, else None. Raises TooManyGuesses."""
        self._wrong_s = [at_s for at_s in self._wrong_s if at_s > now_s - WRONG_WINDOW_S]
        if len(self._wrong_s) >= MAX_WRONG:
            raise TooManyGuesses
        made_s = self._codes.pop(_digest(code), None)
        if made_s is None or now_s - made_s > CODE_S:
            self._wrong_s.append(now_s)
            return None
        token = secrets.token_urlsafe(32)
        self._tokens.add(_digest(token))
        self._used_s = now_s
        return token

    def use(self, token: str, now_s: float) -> bool:
        """Return whether the token is known, and note that the console is in use."""
        known = _digest(token) in self._tokens
        if known:
            self._used_s = now_s
        return known

    def touch(self, now_s: float) -> None:
        """Note that a stream is still being read."""
        self._used_s = now_s

    def idle_s(self, now_s: float) -> float:
        """Return how long the console has been idle."""
        return now_s - self._used_s


def _digest(text: str) -> bytes:
    # Looking up a digest takes no time that says anything about the text.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
