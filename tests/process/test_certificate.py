"""A certificate that is renewed while a real daemon serves it."""

import signal
import socket
import ssl
from pathlib import Path

import trustme
from stage import Stage, wait_until

from sidecar.sandbox.ports import free_ports


def is_served(port: int, authority: trustme.CA) -> bool:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    try:
        with socket.create_connection(("localhost", port), timeout=5) as plain:
            trust.wrap_socket(plain, server_hostname="localhost").close()
    except ssl.SSLCertVerificationError:
        return False
    return True


def test_a_renewed_certificate_is_served_after_a_reload_and_a_bad_one_is_refused_aloud(stage: Stage, tmp_path: Path):
    (port,), pair, old, new = free_ports(1), tmp_path / "both.pem", trustme.CA(), trustme.CA()
    old.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pair))
    stage.write_config(listen=f'https = "127.0.0.1:{port}"\ntls_cert = "{pair}"\ntls_key = "{pair}"')
    daemon = stage.start_daemon()
    assert is_served(port, old)
    new.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pair))
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: is_served(port, new), what="the new certificate")
    pair.write_text("half of it")
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: any("tls_cert" in said for said in stage.status()["warnings"]), what="a complaint")
    assert is_served(port, new)
    assert stage.stop(daemon) == 0
