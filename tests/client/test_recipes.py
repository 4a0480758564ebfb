"""The recipes of sidecar/client/README.md, run with the real frameworks where those are installed."""

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import px_sidecar_client
import pytest
from px_sidecar_client import px_sidecar  # noqa: F401 - the fixture

from sidecar.sandbox.server import free_ports

PAGE = Path(px_sidecar_client.__file__).with_name("README.md").read_text(encoding="utf-8")


def recipe(heading: str, path: str) -> str:
    """Return the code below a heading, with the default socket replaced."""
    code = re.search(rf"^##+ {heading}\n.*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)[1]
    return re.sub(r"Client\((?=[)o])", f"Client({path!r}, ", code).replace(", )", ")")


def names_at_px(sidecar, count):
    return [(event["eventName"], event["identifyId"], event.get("accountId")) for event in sidecar.events(count, 15)]


def test_the_first_example_works(px_sidecar):  # noqa: F811
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1].replace("Client()", f"Client({px_sidecar.path!r})")
    scope = {}
    exec(code, scope)
    scope["events"].close()
    assert names_at_px(px_sidecar, 1)[0][1:] == ("u-1", "acme")


def test_the_example_of_a_test_passes(px_sidecar):  # noqa: F811
    scope = {"Client": px_sidecar_client.Client}
    exec(recipe("Tests of your app", px_sidecar.path).replace(f"{px_sidecar.path!r}, ", ""), scope)
    scope["test_an_export_is_an_event"](px_sidecar)


def test_django_sends_after_the_commit_with_the_requests_account(px_sidecar):  # noqa: F811
    pytest.importorskip("django", reason="django is not installed")
    script = (
        recipe("Django", px_sidecar.path)
        + """
import types, django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

def user_middleware(get_response):
    def middleware(request):
        request.user = types.SimpleNamespace(account_id="acme")
        return get_response(request)
    return middleware

def export(request):
    with transaction.atomic():
        track("u-1", "Report Exported")
        assert not sent
        if "fail" in request.GET:
            raise RuntimeError("rolled back")
    return HttpResponse()

sent = []
real_track = client.track
client.track = lambda *a, **k: sent.append(real_track(*a, **k))
urlpatterns = [path("export", export)]
settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", DEBUG=False,
    MIDDLEWARE=["__main__.user_middleware", "__main__.AccountMiddleware"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()
from django.test import Client as Browser
browser = Browser(raise_request_exception=False)
assert browser.get("/export?fail=1").status_code == 500 and not sent
assert browser.get("/export").status_code == 200 and len(sent) == 1
assert account.get() is None
"""
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env=environ())
    assert names_at_px(px_sidecar, 1) == [("Report Exported", "u-1", "acme")]


def test_fastapi_shares_one_client_for_its_life(px_sidecar):  # noqa: F811
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    script = (
        recipe("FastAPI", px_sidecar.path)
        + """
from fastapi.testclient import TestClient
with TestClient(app) as browser:
    for number in range(5):
        assert browser.post(f"/export/u-{number}").json()["event"]
"""
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, env=environ())
    assert {user for _, user, _ in names_at_px(px_sidecar, 5)} == {f"u-{number}" for number in range(5)}


@pytest.mark.whole
def test_celery_workers_use_connections_of_their_own(px_sidecar, tmp_path):  # noqa: F811
    pytest.importorskip("celery", reason="celery is not installed")
    for folder in ("in", "out", "control"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tasks.py").write_text(
        recipe("Celery", px_sidecar.path)
        + f"""
app.conf.broker_url = "filesystem://"
app.conf.broker_transport_options = {{
    "data_folder_in": {str(tmp_path / "in")!r}, "data_folder_out": {str(tmp_path / "in")!r},
    "control_folder": {str(tmp_path / "control")!r},
}}
client.track("parent", "Before The Fork")
"""
    )
    worker = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool=prefork", "-c", "2", "--without-gossip"]
    with running(worker, tmp_path):
        code = "from tasks import export; [export.delay(f'u-{number}') for number in range(8)]"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60, env=environ())
        # Both the worker and the sender have imported the module and sent its first event.
        assert sum(name == "Report Exported" for name, _, _ in names_at_px(px_sidecar, 10)) == 8


@pytest.mark.whole
def test_gunicorn_workers_use_connections_of_their_own(px_sidecar, tmp_path):  # noqa: F811
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    (port,) = free_ports(1)
    (tmp_path / "web.py").write_text(
        recipe("gunicorn", px_sidecar.path) + 'client.track("parent", "Before The Fork")\n'
    )
    server = [sys.executable, "-m", "gunicorn", "--preload", "-w", "3", "-b", f"127.0.0.1:{port}", "web:app"]
    with running(server, tmp_path):
        for number in range(12):
            assert open_url(f"http://127.0.0.1:{port}/{number}") == 204
        assert sum(name == "Page Served" for name, _, _ in names_at_px(px_sidecar, 13)) == 12


def environ():
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(px_sidecar_client.__file__).parent), *filter(None, sys.path)])
    }


@contextlib.contextmanager
def running(command, folder):
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ(), stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


def open_url(url):
    """Return the status, retrying while the server starts."""
    deadline_s = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status
        except urllib.error.URLError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
