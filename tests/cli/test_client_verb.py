"""`px-sidecar client`."""

import subprocess
import sys
from pathlib import Path

import px_sidecar_client
from click.testing import CliRunner

from sidecar.cli import main


def test_client_prints_the_module_that_apps_import(tmp_path):
    ran = CliRunner().invoke(main, ["client"])
    assert ran.exit_code == 0
    assert ran.output == Path(px_sidecar_client.__file__).read_text(encoding="utf-8")
    (tmp_path / "px_sidecar_client.py").write_text(ran.output, encoding="utf-8")
    code = "import sys, px_sidecar_client as c; c.NullClient().track('u', 'E'); assert 'sidecar' not in sys.modules"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, check=True, timeout=30)
