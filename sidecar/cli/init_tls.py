"""``init --local-tls``: a certificate for localhost, for SDKs that cannot speak plain HTTP, and what they must trust."""

import grp
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.errors import Failed

__all__ = ["LocalTls", "make_certificate", "trust_lines"]

DAYS: Final = 825  # what Apple's systems accept at most (https://support.apple.com/en-us/103769)
GROUP: Final = "px-sidecar"


class LocalTls(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


def make_certificate(folder: Path) -> LocalTls:
    """Make ``localhost.pem`` and ``localhost.key`` with the command openssl; an existing pair is kept. Raises Failed."""
    files = LocalTls(folder / "localhost.pem", folder / "localhost.key")
    if files.certificate.exists() and files.key.exists():
        return files
    openssl = shutil.which("openssl")
    if openssl is None:
        raise Failed("The command openssl does not exist; install it, or set listen.tls_cert and listen.tls_key.")
    command = [
        *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", str(DAYS), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth"),
        *("-keyout", str(files.key), "-out", str(files.certificate)),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mask = os.umask(0o077)  # the key is never readable for others, not even while it is written
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        finally:
            os.umask(mask)
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
            raise Failed(f"openssl could not make the certificate ({last}); set listen.tls_cert and listen.tls_key.")
        files.certificate.chmod(0o644)
        _let_daemon_read(files.key)
    except OSError as error:
        raise Failed(
            f"{folder} cannot be written ({error.strerror}); use sudo, or name another file with --config."
        ) from None
    return files


def _let_daemon_read(key: Path) -> None:
    """Give the key to the group of the packaged daemon, which reads it without root."""
    if os.geteuid() != 0:
        return
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return  # not the package's host: the daemon runs as the user that calls
    os.chown(key, -1, group)
    key.chmod(0o640)


def trust_lines(files: LocalTls) -> list[str]:
    """Return what each SDK that needs TLS must trust, and its setting."""
    certificate = files.certificate.resolve()
    return [
        "Apps that need TLS use https://localhost:8322 and must trust the certificate:",
        f"  Ruby:  SSL_CERT_FILE={certificate} in the app's environment, then",
        '         Segment::Analytics.new(write_key: "any", host: "localhost", port: 8322)',
        f"  PHP:   curl.cainfo = {certificate} in php.ini, then",
        '         Segment::init("any", ["host" => "localhost:8322"]);',
        f"  C#:    SSL_CERT_FILE={certificate} in the app's environment (Linux), then",
        '         new Configuration("any", apiHost: "localhost:8322/v1")',
        f"  Node:  NODE_EXTRA_CA_CERTS={certificate} in the app's environment",
        "SSL_CERT_FILE replaces the system's certificates for that app; to trust it beside them, as root:",
        f"  cp {certificate} /usr/local/share/ca-certificates/px-sidecar.crt && update-ca-certificates",
    ]
