"""``px-sidecar init``: a first configuration, by a few questions; the key goes into a file of its own."""

import os
import re
import shlex
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from sidecar.cli.common import before_the_verb, config_option, json_option, print_json
from sidecar.config import Config, Px, Secret, api_key, config_path, load_text, odd_property_key
from sidecar.config.load import DEFAULT_PATH
from sidecar.config.schema import REGIONS
from sidecar.errors import ConfigError, Failed

__all__ = ["init", "key_path"]

PRESETS: Final = ("b2b-saas", "none")
_PLAIN: Final = re.compile(r"[!#-\[\]-~]+")  # visible ASCII that TOML needs not escape


@click.command()
@click.option("--region", type=click.Choice(list(REGIONS)), help="Where your PX subscription lives.")
@click.option("--property-key", help="The key of your PX product, AP-XXXXXXXXXX-2.")
@click.option("--preset", type=click.Choice(PRESETS), help="How event names are mapped.")
@click.option("--hosts", type=click.IntRange(1, 1_000), help="How many hosts share the PX subscription.")
@click.option("--key-from", type=click.File("rb"), help="Read the REST API key from this file; - is standard input.")
@click.option("--yes", is_flag=True, help="Ask nothing: take defaults for what is not given.")
@config_option
@json_option
def init(
    region: str | None,
    property_key: str | None,
    preset: str | None,
    hosts: int | None,
    key_from: BinaryIO | None,
    yes: bool,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Write a first configuration, asking a few questions.

    The REST API key is not written into the configuration but into a file
    beside it that only its owner can read. An existing configuration is not
    overwritten, nor is a key.

    \b
    Examples:
      sudo px-sidecar init
      px-sidecar init --yes --config ./config.toml --region eu \\
        --property-key AP-XXXXXXXXXX-2 --key-from ./key
    """
    instance = before_the_verb("instance")
    path, _ = config_path(config_flag, os.environ, instance)
    _refuse_to_overwrite(path)
    key_file = key_path(path)
    if not yes:
        _explain(path)
    region = region or str(_ask("Region of your PX subscription", yes=yes, default="us", choices=list(REGIONS)))
    product = _asked_property_key(property_key, yes=yes)
    preset = preset or str(_ask("Preset for event names", yes=yes, default="b2b-saas", choices=PRESETS))
    hosts = hosts or int(_ask("Hosts that share the PX subscription", yes=yes, default=1))
    key = None if key_file.exists() else _asked_key(key_from, yes=yes)
    by_unit = path.parent == Path(DEFAULT_PATH).parent
    text = _text(region, product, preset, hosts, key_file=None if by_unit else key_file.resolve())
    load_text(text, {}, str(path))
    if key is not None:
        _write(key_file, key.reveal() + "\n", 0o600)
    _write(path, text, 0o644)
    if as_json:
        print_json({"config": str(path), "key_file": str(key_file), "key_written": key is not None})
        return
    _tell(path, key_file, key is not None, by_unit=by_unit, instance=instance)


def key_path(config: Path) -> Path:
    """Where the key of a configuration is: where the units look for it (``api_key``, of an instance ``NAME.api_key``)."""
    return config.with_name("api_key" if config.name == "config.toml" else f"{config.stem}.api_key")


def _refuse_to_overwrite(path: Path) -> None:
    """Raise Failed if there is a configuration; one that sets nothing, as the package brings it, is none."""
    try:
        if load_text(path.read_text(encoding="utf-8"), {}) == Config():
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failed(f"{path} cannot be read ({error.strerror}); use sudo, or name another with --config.") from None
    except (ConfigError, UnicodeDecodeError):
        pass  # somebody's work, even if it is not valid
    raise Failed(f"{path} exists and is not overwritten; edit it, move it away, or name another with --config.")


def _explain(path: Path) -> None:
    click.echo(
        f"This writes {path}. You need two things from PX: a REST API key with Write\n"
        "permission (Administration > Integrations > REST API) and the key of your product\n"
        "(Administration > Products).\n",
        err=True,
    )


def _ask(question: str, *, yes: bool, default: Any, choices: Any = None) -> Any:
    if yes:
        return default
    kind = click.Choice(choices) if choices else click.IntRange(1, 1_000)
    return click.prompt(question, default=default, type=kind, err=True)


def _asked_property_key(given: str | None, *, yes: bool) -> str:
    while True:
        key = given if given is not None else None if yes else click.prompt("Product key (AP-XXXXXXXXXX-2)", err=True)
        if key is None:
            raise click.UsageError("With --yes the product key has to be given: --property-key AP-XXXXXXXXXX-2.")
        key = key.strip()
        if _PLAIN.fullmatch(key):
            if odd := odd_property_key(key):
                click.echo(f"Note: {odd}", err=True)
            return str(key)
        if given is not None:
            raise click.BadParameter("a product key is one word, as AP-XXXXXXXXXX-2", param_hint="--property-key")
        click.echo("A product key is one word, as AP-XXXXXXXXXX-2.", err=True)


def _asked_key(key_from: BinaryIO | None, *, yes: bool) -> Secret | None:
    """The API key, or None if it is to be given later. Raises ConfigError if a given one cannot be a key."""
    if key_from is not None:
        return _as_key(key_from.read(8192).decode("utf-8", "replace"))
    if yes:
        return None
    while True:
        text = click.prompt(
            "REST API key (not shown; empty: later)", hide_input=True, default="", show_default=False, err=True
        )
        if not text:
            return None
        try:
            return _as_key(text)
        except ConfigError as error:
            click.echo(str(error).replace("px.api_key ", "That "), err=True)


def _as_key(text: str) -> Secret:
    return api_key(Px(api_key=Secret(text)), {})


def _text(region: str, product: str, preset: str, hosts: int, *, key_file: Path | None) -> str:
    """The configuration. What is left at its default is there as a comment."""
    if key_file is None:
        key_line = "# The REST API key stands alone in a file beside this one, which systemd hands to the daemon."
    else:
        key_line = f"api_key_file = '{key_file}'" if "'" not in str(key_file) else f'api_key_file = "{key_file}"'
    hosts_line = (
        f"hosts = {hosts}" if hosts > 1 else "# hosts = 1           # that share the subscription and its limits"
    )
    return f"""# px-sidecar. All there is: `px-sidecar config show`, `px-sidecar config schema`; judge it: `px-sidecar check`.

[px]
region = "{region}"
property_key = "{product}"
{key_line}

[mapping]
preset = "{preset}"
# anonymous = "drop"    # visitor, lead: events without a userId go to PX as well

# [mapping.events]      # event name or glob = name in PX, "" drops it
# "Products Searched" = "Searched"

[deliver]
{hosts_line}
# per_second = 190
# per_day = 990_000
"""


def _write(path: Path, text: str, mode: int) -> None:
    """Put a file there in one step, so that nobody ever sees half of it. Raises Failed."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask is
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Failed(f"{path} cannot be written ({error.strerror}); use sudo, or name another with --config.") from None


def _tell(path: Path, key_file: Path, key_written: bool, *, by_unit: bool, instance: str) -> None:
    click.echo(f"Written: {path}" + (f" and {key_file} (mode 0600)" if key_written else ""))
    if not key_written and key_file.exists():
        click.echo(f"The key in {key_file} was there and is kept.")
    elif not key_written:
        click.echo(f"Still to do: put the REST API key alone into {key_file} (mode 0600).")
    if by_unit:
        unit, flags = (f"px-sidecar@{instance}", f" --instance {instance}") if instance else ("px-sidecar", "")
        click.echo(f"Next: px-sidecar{flags} check --live && systemctl enable --now {unit}")
    else:
        named = shlex.quote(str(path))
        click.echo(f"Next: px-sidecar check --live --config {named} && px-sidecar run --config {named}")
