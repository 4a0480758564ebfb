"""A certificate is renewed in its files while a real daemon serves it."""

import signal
import socket
import ssl
from pathlib import Path

import trustme
from process_harness import ProcessHarness, wait_until

from sidecar.sandbox.server import free_ports


def is_served(port: int, authority: trustme.CA) -> bool:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    try:
        # By address: a minimal Debian has no /etc/hosts that resolves localhost.
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            trust.wrap_socket(plain, server_hostname="localhost").close()
    except ssl.SSLCertVerificationError:
        return False
    return True


def test_a_reload_serves_a_new_certificate_and_refuses_a_bad_one(harness: ProcessHarness, tmp_path: Path):
    (port,), pair, old, new = free_ports(1), tmp_path / "both.pem", trustme.CA(), trustme.CA()
    old.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pair))
    harness.write_config(listen=f'https = "127.0.0.1:{port}"\ntls_cert = "{pair}"\ntls_key = "{pair}"')
    daemon = harness.start_daemon()
    assert is_served(port, old)
    new.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pair))
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: is_served(port, new), what="the new certificate")
    pair.write_text("half of it")
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: any("tls_cert" in text for text in harness.status()["warnings"]), what="a warning")
    assert is_served(port, new)
    assert harness.stop(daemon) == 0
