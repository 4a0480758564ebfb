"""Parameters in URLs: find them in a text, and remove or replace some of them.

Apps put personal data into URLs (``?email=…``), and SDKs send the URL of every page. A privacy rule therefore applies to
parameters as it does to properties.

A *run* is what stands between a ``?`` or ``#`` and the next one. In it, parameters are separated by ``&``, for privacy
rules also by ``;`` and by the ``&amp;`` of HTML. A parameter whose value is itself a URL or a form is searched, too.
"""

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, unquote_plus

__all__ = ["is_url", "parameter_names", "rewrite_form", "rewrite_parameters"]

_URL: Final = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*://|//|/|\?|#)")
_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
# In a text that is not a URL as a whole, a run ends with the word it stands in.
_RUN: Final = re.compile(r"([?#])([^?#]*)")
_RUN_IN_PROSE: Final = re.compile(r"([?#])([^?#\s]*)")
# The body of a form, a query without its question mark, or a cookie header.
_FORM: Final = re.compile(r"(?:[^\s=&;{}\"'<>?#]++(?:=[^\s&;]*+)?+|[&;] ?+)*+\s*+")
_SEPARATORS: Final = re.compile(r"(&amp;|[&;])")
_STEPS: Final = re.compile(r"[\[\].]+")
_MAX_DEPTH: Final = 4  # URLs and forms in parameters of URLs

# Takes the name and the value of a parameter, decoded; returns the new value, None to remove the parameter.
Decide = Callable[[str, str], str | None]


def is_url(text: str) -> bool:
    """Return True for an absolute URL, and for a path, a query or a fragment alone."""
    return _URL.match(text) is not None and (_SCHEME.match(text) is not None or " " not in text.strip())


def parameter_names(name: str) -> list[str]:
    """Return the names by which a rule may mean a parameter: ``user[email]`` is also ``email``."""
    return [name, *(step for step in _STEPS.split(name) if step and step != name)]


def rewrite_parameters(text: str, decide: Decide, *, bare: bool = False, whole: bool = False, depth: int = 0) -> str:
    """Return the text with each parameter as ``decide`` wants it; what it does not change stays byte for byte.

    With ``bare``, what follows a ``?`` without being ``name=value`` is a parameter, too, with an empty value.
    """
    run = _RUN if whole or _SCHEME.match(text) else _RUN_IN_PROSE
    return run.sub(lambda match: _rewrite_run(match[1], match[2], decide, bare and match[1] == "?", depth), text)


def rewrite_form(text: str, decide: Decide) -> str:
    """Return a text that consists of ``name=value`` pairs with each as ``decide`` wants it; other texts as they are."""
    return _rewrite_run("", text, decide, False, 0) if _FORM.fullmatch(text) else text


def _rewrite_run(mark: str, body: str, decide: Decide, bare: bool, depth: int) -> str:
    # With `bare`, what stands behind a `;` would count as a parameter of its own, and a value would be cut there.
    parts = re.split("(&)", body) if bare else _SEPARATORS.split(body)
    kept: list[str] = []
    for index in range(0, len(parts), 2):
        new = _rewrite_part(parts[index], decide, bare, depth)
        if new is not None:
            kept += [*parts[index - 1 : index], new] if kept else [new]
    return f"{mark}{''.join(kept)}" if kept or not body else ""


def _rewrite_part(part: str, decide: Decide, bare: bool, depth: int) -> str | None:
    name, equals, value = part.partition("=")
    if not equals and not bare:
        return part
    plain = unquote_plus(value)
    new = decide(unquote_plus(name), plain)
    if new is None:
        return None
    if new == plain and depth < _MAX_DEPTH:
        # The state of a sign-in, a whole query or a cookie. Its values are searched for URLs; a second time would double
        # the work with each level.
        if "=" in plain and not bare and _FORM.fullmatch(plain):
            new = _rewrite_run("", plain, decide, False, depth + 1)
        elif "?" in plain or "#" in plain:
            new = rewrite_parameters(plain, decide, bare=bare, depth=depth + 1)
    return part if new == plain else f"{name}={quote(new, safe='')}"
