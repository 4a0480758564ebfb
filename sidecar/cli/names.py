"""``px-sidecar names``: the catalogue of event names, for people, for CI, and as a page for those without a shell."""

import csv
import html
import io
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec

from sidecar.cli.backend import control_option, open_backend
from sidecar.cli.common import hint, json_option, print_document, print_json
from sidecar.cli.px_queries import declared_in_px, totals_in_px
from sidecar.cli.screen import console, local_time_ms, printable, progress_bar, table
from sidecar.control.client import ControlApi
from sidecar.control.names import NameEntry, differences, findings, merged
from sidecar.errors import Failed
from sidecar.units import counted, show_count

__all__ = ["names"]

# PX shows an event some minutes after it accepted it.
TOO_NEW_MS: Final = 15 * 60_000
DAY_MS: Final = 86_400_000
MAX_RANGE_MS: Final = 190 * 86_400_000


class Catalogue(msgspec.Struct):
    """The document that ``--save`` writes and ``--diff`` and ``--merge`` read: the answer of ``--json``."""

    names: list[NameEntry]
    sampled: int = 0
    now_ms: int = 0
    traits: dict[str, dict[str, int]] = {}
    findings: list[str] = []


@click.command()
@click.option(
    "--sample",
    type=click.IntRange(0, 20_000),
    default=2_000,
    show_default=True,
    help="Newest events to look at for attributes.",
)
@click.option("--verify", is_flag=True, help="Ask PX how many it has of each name; the key needs Read.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the catalogue to this file.")
@click.option(
    "--diff",
    "earlier",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare with a saved one; exit 1 if it differs.",
)
@click.option(
    "--merge",
    "others",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Add another host's saved catalogue; repeatable.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, one line per attribute.")
@click.option("--html", "as_html", is_flag=True, help="Print a page for a browser.")
@control_option
@json_option
def names(
    sample: int,
    verify: bool,
    save: Path | None,
    earlier: Path | None,
    others: tuple[Path, ...],
    as_csv: bool,
    as_html: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """List every event name that was received, and what it becomes in PX.

    Shows how often each came, its share of the last day, attributes and their
    types, and what is suspicious: names that differ in spelling, attributes of
    changing type, values that were cut, limits of PX that are near. With
    --verify it also lists names that PX accepted (201) but does not show.

    \b
    Examples:
      px-sidecar names --verify
      px-sidecar names --save names.json; px-sidecar names --diff names.json
      px-sidecar names --merge host2.json --html > names.html
    """
    if as_csv + as_html + as_json > 1:
        raise click.UsageError("Choose one of --csv, --html and --json.")
    with open_backend(control_flag, config_flag) as backend:
        answer = backend.get("/v1/names", {"sample": sample})
    catalogue = msgspec.convert(answer, Catalogue)
    undeclared: list[str] = []
    if others:
        _merge(catalogue, [_read(path) for path in others])
    if verify:
        if unjudged := _ask_px(backend, config_flag, catalogue.names):
            click.echo(printable(unjudged), err=True)
        undeclared = _ask_declared(backend, config_flag, catalogue.traits)
    catalogue.names.sort(key=lambda entry: (-entry.events, entry.name))
    catalogue.findings = findings(catalogue.names) + undeclared
    if save is not None:
        _write(save, catalogue)
    changed = differences(_read(earlier).names, catalogue.names) if earlier is not None else []
    _print(catalogue, changed if earlier is not None else None, as_csv=as_csv, as_html=as_html, as_json=as_json)
    if changed:
        sys.exit(1)


def _read(path: Path) -> Catalogue:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Catalogue)
    except OSError as error:
        raise Failed(f"{path} cannot be read ({error.strerror}); check its owner and mode.") from None
    except msgspec.DecodeError as error:
        raise Failed(f"{path} is not a catalogue ({error}); make it with `px-sidecar names --save`.") from None


def _merge(catalogue: Catalogue, others: list[Catalogue]) -> None:
    """Add the catalogues of other hosts to that of this one: names, and the traits that --verify asks PX for."""
    catalogue.names = merged([catalogue.names, *(other.names for other in others)])
    catalogue.sampled += sum(other.sampled for other in others)
    for other in others:
        for kind, counts in other.traits.items():
            known = catalogue.traits.setdefault(kind, {})
            for name, count in counts.items():
                known[name] = known.get(name, 0) + count


def _write(path: Path, catalogue: Catalogue) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(catalogue), indent=1) + b"\n")
    except OSError as error:
        raise Failed(f"{path} cannot be written ({error.strerror}); name another file with --save.") from None


def _ask_px(backend: ControlApi, config_flag: str | None, entries: list[NameEntry]) -> str:
    """Fill in what PX has of each name; return a sentence on those that nothing can be said of.

    A name with ";" cannot be asked for: PX's filter reads it as "and". That PX shows none says something only of a name
    that was delivered, and not just now.
    """
    until_ms = int(time.time() * 1000)
    asked = left = [entry for entry in entries if entry.px and ";" not in entry.px]
    since_ms = max(min((entry.first_ms for entry in asked), default=0) - DAY_MS, until_ms - MAX_RANGE_MS)
    progress, task = progress_bar("asking PX", total=len(asked))
    with progress:
        while left:
            totals = totals_in_px(backend, config_flag, [str(entry.px) for entry in left], since_ms, until_ms)
            for entry, hits in zip(left, totals, strict=False):
                entry.in_px = hits if hits or 0 < entry.delivered_ms <= until_ms - TOO_NEW_MS else None
            left = left[len(totals) :]
            progress.advance(task, len(totals))
    reasons = {
        "none of their events was delivered, or only within 15 minutes": [e for e in asked if e.in_px is None],
        "PX cannot be asked for a name with a semicolon": [e for e in entries if e.px and ";" in e.px],
    }
    parts = [
        f"{', '.join(sorted({str(entry.px) for entry in unjudged}))} ({why})"
        for why, unjudged in reasons.items()
        if unjudged
    ]
    return f"Whether PX shows these is not known: {'; '.join(parts)}." if parts else ""


def _ask_declared(backend: ControlApi, config_flag: str | None, traits: dict[str, dict[str, int]]) -> list[str]:
    """Return a sentence for each custom attribute of users and accounts that PX does not declare."""
    found: list[str] = []
    kinds: tuple[Literal["user", "account"], ...] = ("user", "account")
    for kind in kinds:
        if not traits.get(kind):
            continue
        try:
            declared = {name.casefold() for name in declared_in_px(backend, config_flag, kind)}
        except Failed as error:
            found.append(str(error))
            continue
        missing = sorted(name for name in traits[kind] if name.casefold() not in declared)
        found += [
            f"PX declares no {kind} attribute {name}; declare it under Administration > Attributes." for name in missing
        ]
    return found


def _print(catalogue: Catalogue, changed: list[str] | None, *, as_csv: bool, as_html: bool, as_json: bool) -> None:
    if as_json:
        print_json(catalogue if changed is None else msgspec.to_builtins(catalogue) | {"differences": changed})
    elif as_csv:
        print_document(_csv(catalogue))
    elif as_html:
        print_document(_html(catalogue) + "\n")
    elif changed is not None:
        click.echo("\n".join(printable(line) for line in changed) or "Nothing has changed.")
    else:
        _show(catalogue)


def _show(catalogue: Catalogue) -> None:
    if not catalogue.names:
        click.echo("No event was received yet.", err=True)
        return
    asked = any(entry.in_px is not None for entry in catalogue.names)
    headings = ["name", "events", "last day", "newest", "in PX as", *(["in PX"] if asked else [])]
    rows = [
        [
            entry.label,
            show_count(entry.events),
            f"{100 * entry.share:.0f} %",
            local_time_ms(entry.last_ms or None),
            _fate(entry),
            *([_in_px(entry)] if asked else []),
        ]
        for entry in catalogue.names
    ]
    console().print(table(headings, rows, wide="name", cut={"in PX as": 22}))
    for entry in catalogue.names:
        kinds = [f"{name} ({'/'.join(sorted(types))})" for name, types in sorted(entry.attributes.items())]
        first = f"first {local_time_ms(entry.first_ms or None)}"
        line = f"{printable(entry.label)}: {first}{'; ' if kinds else ''}{printable(', '.join(kinds))}"
        console().print(line, soft_wrap=False)
    for finding in catalogue.findings:
        click.secho(printable(hint(f"warn  {finding}")), fg="yellow")
    unseen = sorted({str(entry.px) for entry in catalogue.names if entry.in_px == 0})
    if unseen:
        click.echo("To register under Administration > Events:")
        click.echo("\n".join(printable(name) for name in unseen))


def _fate(entry: NameEntry) -> str:
    if entry.px is not None:
        return entry.px
    return f"({', '.join(sorted(entry.not_sent))})" if entry.not_sent else "?"


def _in_px(entry: NameEntry) -> str:
    return "-" if entry.in_px is None else show_count(entry.in_px)


def _rows(catalogue: Catalogue) -> list[list[Any]]:
    """Return one row per attribute, at least one per name."""
    return [
        [
            *(entry.name, entry.type, entry.events, round(entry.share, 4)),
            *(_utc(entry.first_ms), _utc(entry.last_ms), entry.px or "", ", ".join(sorted(entry.not_sent))),
            *("" if entry.in_px is None else entry.in_px, attribute, "/".join(sorted(types))),
        ]
        for entry in catalogue.names
        for attribute, types in sorted(entry.attributes.items()) or [("", {})]
    ]


def _utc(wall_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_ms / 1000)) if wall_ms else ""


HEADINGS: Final = (
    "name",
    "type",
    "events",
    "share of the day",
    "first",
    "last",
    "name in PX",
    "not sent",
    "in PX",
    "attribute",
    "types",
)


def _csv(catalogue: Catalogue) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(HEADINGS)
    for row in _rows(catalogue):
        # A spreadsheet would execute a text that begins like this (https://owasp.org/www-community/attacks/CSV_Injection).
        writer.writerow(
            [f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell for cell in row]
        )
    return out.getvalue()


def _html(catalogue: Catalogue) -> str:
    """Return a page without scripts, for a mail or a shared folder."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(printable(cell))}</td>" for cell in row) + "</tr>\n"
        for row in _rows(catalogue)
    )
    warnings = "".join(f"<li>{html.escape(printable(finding))}</li>\n" for finding in catalogue.findings)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Event names</title>
<style>body{{font:15px sans-serif;margin:2em}}table{{border-collapse:collapse}}td,th{{border:1px solid #bbb;padding:.3em .6em;text-align:left}}</style>
</head><body><h1>Event names</h1><p>{html.escape(local_time_ms(catalogue.now_ms or None))}; {counted(len(catalogue.names), "name")}.</p>
<ul>{warnings}</ul>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}</tbody></table></body></html>"""
