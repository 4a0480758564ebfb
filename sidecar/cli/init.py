"""``px-sidecar init``: write a first configuration from a few answers, and the API key into a separate file."""

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from sidecar.cli.common import config_option, global_option, hint, json_option, print_json
from sidecar.cli.init_tls import LocalTls, make_certificate, trust_lines
from sidecar.cli.init_user import UserPaths, unit_text, user_paths
from sidecar.config import Config, PxConfig, Secret, api_key, config_path, json_schema, load_text, property_key_warning
from sidecar.config.file import DEFAULT_PATH, user_path
from sidecar.config.schema import REGIONS
from sidecar.errors import ConfigError, Failed

__all__ = ["init", "key_path"]

PRESETS: Final = ("b2b-saas", "none")
_PRODUCT: Final = re.compile(r"AP-[!#-\[\]-~]+")  # visible ASCII that TOML does not escape
SCHEMA: Final = "config.schema.json"


@click.command()
@click.option("--region", type=click.Choice(list(REGIONS)), help="The region of your PX subscription.")
@click.option("--property-key", help="The key of your PX product, AP-XXXXXXXXXX-2.")
@click.option("--preset", type=click.Choice(PRESETS), help="The preset that maps event names.")
@click.option("--hosts", type=click.IntRange(1, 1_000), help="The number of hosts that share the PX subscription.")
@click.option("--key-from", type=click.File("rb"), help="Read the REST API key from this file; - is standard input.")
@click.option("--local-tls", is_flag=True, help="Make a certificate for localhost, for SDKs that need TLS.")
@click.option("--yes", is_flag=True, help="Ask nothing; use defaults for options not given.")
@config_option
@json_option
def init(
    region: str | None,
    property_key: str | None,
    preset: str | None,
    hosts: int | None,
    key_from: BinaryIO | None,
    local_tls: bool,
    yes: bool,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Write a first configuration, asking a few questions.

    The REST API key is written to a separate file beside the configuration
    that only its owner can read. An existing configuration or key is not
    overwritten. Without root, and where the host has no configuration, all
    files are below your home directory, with a unit for `systemctl --user`.

    With --local-tls it makes a certificate for localhost, turns on HTTPS on
    port 8322 and prints what each SDK that needs TLS must trust; with a
    configuration that exists it makes the certificate only.

    \b
    Examples:
      sudo px-sidecar init
      px-sidecar init --yes --config ./config.toml --region eu \\
        --property-key AP-XXXXXXXXXX-2 --key-from ./key
    """
    instance = global_option("instance")
    path, own = _path(config_flag, instance)
    if local_tls and _is_configured(path):
        _add_tls(path, as_json=as_json)
        return
    _ensure_not_configured(path)
    key_file = key_path(path)
    if not yes:
        _print_introduction(path)
    region = region or str(_prompt("Region of your PX subscription", yes=yes, default="us", choices=list(REGIONS)))
    product = _prompt_property_key(property_key, yes=yes)
    preset = preset or str(_prompt("Preset for event names", yes=yes, default="b2b-saas", choices=PRESETS))
    hosts = hosts or int(_prompt("Hosts that share the PX subscription", yes=yes, default=1))
    key = None if key_file.exists() else _prompt_api_key(key_from, yes=yes)
    for_units = path.parent == Path(DEFAULT_PATH).parent
    text = _config_text(region, product, preset, hosts, key_file=None if for_units else key_file.resolve())
    text += "" if own is None else _user_text(user_paths(own))
    tls = make_certificate(path.parent) if local_tls else None
    text += "" if tls is None else _tls_text(tls, section=own is None)
    load_text(text, {}, str(path))
    _write_atomically(path.with_name(SCHEMA), json.dumps(json_schema(), indent=1) + "\n", 0o644)
    if key is not None:
        _write_atomically(key_file, key.reveal() + "\n", 0o600)
    _write_atomically(path, text, 0o644)
    _write_unit(own)
    if as_json:
        print_json({"config": str(path), "key_file": str(key_file), "key_written": key is not None})
        return
    _show_next_steps(path, key_file, key is not None, for_units=for_units, instance=instance)
    _show_unit(own)
    if tls is not None:
        click.echo("\n".join(trust_lines(tls)))


def _path(flag: str | None, instance: str) -> tuple[Path, Path | None]:
    """Return the file to write, and the same again if it is a user's own."""
    path, named = config_path(flag, os.environ, instance)
    own = user_path()
    if instance or (named and path != own):
        own = None
    return own or path, own


def key_path(config: Path) -> Path:
    """Return the path of a configuration's key file, as the units expect it: ``api_key``, for an instance ``NAME.api_key``."""
    return config.with_name("api_key" if config.name == "config.toml" else f"{config.stem}.api_key")


def _ensure_not_configured(path: Path) -> None:
    """Raise Failed if a configuration exists. The file of the Debian package sets nothing and may be replaced."""
    if _is_configured(path):
        raise Failed(
            f"{path} exists and is not overwritten; edit it, move it away, or name another file with --config."
        )


def _is_configured(path: Path) -> bool:
    """Return whether the file exists and sets something. Raises Failed if it cannot be read."""
    try:
        return not _is_unset(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Failed(
            f"{path} cannot be read ({error.strerror}); use sudo, or name another file with --config."
        ) from None


def _is_unset(path: Path) -> bool:
    """Return whether the file sets nothing. An invalid one may hold work, so it counts as set. Raises OSError."""
    try:
        return load_text(path.read_text(encoding="utf-8"), {}) == Config()
    except (ConfigError, UnicodeDecodeError):
        return False


def _add_tls(path: Path, *, as_json: bool) -> None:
    """Make the certificate for a configuration that exists, and print what to add to it."""
    files = make_certificate(path.parent)
    if as_json:
        print_json({"config": str(path), "tls_cert": str(files.certificate), "tls_key": str(files.key)})
        return
    click.echo(f"Written: {files.certificate} and {files.key}")
    click.echo(f"Add to [listen] in {path}, then restart px-sidecar:")
    click.echo(_tls_text(files, section=False).strip())
    click.echo("\n".join(trust_lines(files)))


def _tls_text(files: LocalTls, *, section: bool) -> str:
    lines = ['https = "127.0.0.1:8322"', f"tls_cert = {_toml(files.certificate)}", f"tls_key = {_toml(files.key)}"]
    return "\n".join([*(["", "[listen]"] if section else []), *lines, ""])


def _user_text(paths: UserPaths) -> str:
    """Return the sections that a daemon without root needs; [listen] is the last one."""
    return f"""
[outbox]
path = {_toml(paths.outbox)}

[listen]
unix = {_toml(paths.sockets / "events.sock")}
control = {_toml(paths.sockets / "control.sock")}
"""


def _toml(path: Path) -> str:
    text = str(path.absolute()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _write_unit(own: Path | None) -> None:
    """Write the unit of the user's own service manager, for a configuration below the home directory."""
    if own is not None and not user_paths(own).unit.exists():
        _write_atomically(user_paths(own).unit, unit_text(own), 0o644)


def _show_unit(own: Path | None) -> None:
    if own is None:
        return
    paths = user_paths(own)
    click.echo(f"Or as a service: systemctl --user enable --now px-sidecar  ({paths.unit})")
    click.echo(f"Apps: http://127.0.0.1:8321 or {paths.sockets / 'events.sock'}")


def _print_introduction(path: Path) -> None:
    text = (
        f"This writes {path}. It needs two things from PX: a REST API key with Write permission (Administration > "
        "Integrations > REST API) and the key of your product (Administration > Products)."
    )
    width = min(80, shutil.get_terminal_size().columns)
    click.echo(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) + "\n", err=True)


def _prompt(question: str, *, yes: bool, default: Any, choices: Any = None) -> Any:
    if yes:
        return default
    kind = click.Choice(choices) if choices else click.IntRange(1, 1_000)
    return click.prompt(question, default=default, type=kind, err=True)


def _prompt_property_key(flag: str | None, *, yes: bool) -> str:
    while True:
        key = flag if flag is not None else None if yes else click.prompt("Product key (AP-XXXXXXXXXX-2)", err=True)
        if key is None:
            raise click.UsageError("--yes needs the product key: --property-key AP-XXXXXXXXXX-2.")
        key = key.strip()
        if _PRODUCT.fullmatch(key):
            if warning := property_key_warning(key):
                click.echo(f"Note: {warning}", err=True)
            return str(key)
        if flag is not None:
            raise click.BadParameter(
                "a product key begins with AP-, as in AP-XXXXXXXXXX-2", param_hint="--property-key"
            )
        click.echo("A product key begins with AP-, as in AP-XXXXXXXXXX-2.", err=True)


def _prompt_api_key(key_from: BinaryIO | None, *, yes: bool) -> Secret | None:
    """Return the API key, or None to set it later. Raises ConfigError if the key in ``key_from`` is malformed."""
    if key_from is not None:
        return _validated_key(key_from.read(8192).decode("utf-8", "replace"))
    if yes:
        return None
    while True:
        text = _ask_hidden("REST API key (hidden; leave empty to set it later)")
        if not text:
            return None
        try:
            return _validated_key(text)
        except ConfigError as error:
            click.echo(str(error).replace("px.api_key ", "The answer "), err=True)


def _ask_hidden(question: str) -> str:
    """Return what was typed, without an echo. A pipe has none to hide, and getpass would warn of it or ask the terminal."""
    if sys.stdin.isatty():
        return str(click.prompt(question, hide_input=True, default="", show_default=False, err=True))
    click.echo(f"{question}: ", nl=False, err=True)
    answer = sys.stdin.readline()
    click.echo(err=True)
    return answer.rstrip("\r\n")


def _validated_key(text: str) -> Secret:
    return api_key(PxConfig(api_key=Secret(text)), {})


def _config_text(region: str, product: str, preset: str, hosts: int, *, key_file: Path | None) -> str:
    """Return the configuration file; settings left at their default appear as comments."""
    if key_file is None:
        key_line = "# The REST API key is in a file beside this one; systemd passes it to the daemon as a credential."
    else:
        key_line = f"api_key_file = {_toml(key_file)}"
    hosts_line = (
        f"hosts = {hosts}" if hosts > 1 else "# hosts = 1           # hosts that share the subscription and its limits"
    )
    return f"""#:schema ./{SCHEMA}
# px-sidecar. {hint("All settings: `px-sidecar config show`, `px-sidecar config schema`; test this file: `px-sidecar check`.")}

[px]
region = "{region}"
property_key = "{product}"
{key_line}

[mapping]
preset = "{preset}"
# anonymous = "drop"    # visitor or lead: also send events without a userId

# [mapping.events]      # event name or glob = name in PX; "" drops the event
# "Products Searched" = "Searched"

[mapping.fields]
eventId = "messageId"   # PX and the app know one id

[deliver]
{hosts_line}
# per_second = 190
# per_day = 990_000
"""


def _write_atomically(path: Path, text: str, mode: int) -> None:
    """Write a file by rename, so that a crash leaves either the old state or the whole file. Raises Failed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)  # the mode given to open() is subject to the umask
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Failed(
            f"{path} cannot be written ({error.strerror}); use sudo, or name another file with --config."
        ) from None


def _show_next_steps(path: Path, key_file: Path, key_written: bool, *, for_units: bool, instance: str) -> None:
    click.echo(f"Written: {path}" + (f" and {key_file} (mode 0600)" if key_written else ""))
    if not key_written and key_file.exists():
        click.echo(f"The existing key in {key_file} is kept.")
    elif not key_written:
        click.echo(f"Still to do: write the REST API key, and nothing else, into {key_file} (mode 0600).")
    if for_units:
        unit, flags = (f"px-sidecar@{instance}", f" --instance {instance}") if instance else ("px-sidecar", "")
        click.echo(f"Next: px-sidecar{flags} check --live && systemctl enable --now {unit}")
    else:
        quoted = shlex.quote(str(path))
        click.echo(f"Next: px-sidecar check --live --config {quoted} && px-sidecar run --config {quoted}")
