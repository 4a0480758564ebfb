"""Make the pictures of the console that README.md shows: ``PYTHONPATH=.:tests/support python tests/console/make_pictures.py``.

They are screenshots of a real daemon under traffic, with a scripted PX; only the name of the host is another. It takes seven minutes.
"""

import math
import random
import tempfile
import threading
import time
from pathlib import Path

from console_process import running_console
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from running_daemon import DaemonDir, RunningDaemon

from sidecar.client import Client
from sidecar.config import ConfigFile
from sidecar.px import PxAnswer, PxRequest, Reply

FOLDER = Path(__file__).with_name("pictures")
WIDTH = 1180
COLORS = 128
TRAFFIC_S = 400
NAMES = {"Feature Used": 30, "Dashboard Viewed": 25, "Search Performed": 12, "Report Exported": 9, "Order Completed": 2}
MORE = '[mapping.events]\n"Dashboard Viewed" = "Viewed"\n[mapping.attributes]\ndrop = ["email"]\n'


async def px(request: PxRequest) -> Reply:
    if b"Order Completed" in request.body:
        answer = b'{"errorMessage":"Validation error","subErrors":[{"message":"attributes.total: must be a number"}]}'
        return PxAnswer(400, answer, content_type="application/json")
    return PxAnswer(201, b"{}", content_type="application/json")


def send(daemon: RunningDaemon, over: threading.Event) -> None:
    """Send 20 to 100 events a second, as an app does."""
    chance, number = random.Random(1), 0
    names = [name for name, weight in NAMES.items() for _ in range(weight)]
    with Client(daemon.daemon_dir.unix) as client:
        for user in range(200):
            client.group(f"u-{user}", f"acme-{user % 17}")
        while not over.wait(1 / (90 + 50 * math.sin(number / 3000))):
            number += 1
            properties = {"plan_name": chance.choice(["free", "team", "pro"]), "rows": chance.randrange(9_000)}
            client.track(f"u-{chance.randrange(200)}", chance.choice(names), properties | {"email": "ann@example.com"})


def take(page: Page, name: str, selector: str = "body", height: int = 0) -> None:
    """Write one picture, with few colors, since it is kept in the repository."""
    path = FOLDER / f"{name}.png"
    page.locator(selector).first.screenshot(path=path)
    with Image.open(path) as image:
        part = image.crop((0, 0, image.width, min(height or image.height, image.height)))
        part.convert("RGB").quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    print(f"{path}: {path.stat().st_size:,} bytes")


def take_all(page: Page, origin: str) -> None:
    time.sleep(TRAFFIC_S)
    page.click("td button.link >> nth=0")
    page.wait_for_timeout(500)
    take(page, "live", height=1_130)
    page.goto(f"{origin}/#/events?name=Report+Exported")
    page.click("tbody a >> nth=3")
    page.wait_for_selector("text=The mapping of this name")
    take(page, "trace", height=740)
    page.goto(f"{origin}/#/mapping?name=Report+Exported")
    page.wait_for_selector("details")
    text = page.input_value("textarea").replace(
        "[mapping.attributes]", "[mapping.attributes]\nrename = { plan_name = 'plan' }"
    )
    page.fill("textarea", text.replace("[mapping.events]", '[mapping.events]\n"Report Exported" = "Exported a report"'))
    page.wait_for_selector("text=/50 of 50 real events would change/")
    page.click("summary >> nth=0")
    take(page, "mapping", "section:has(> h2:has-text('The newest events'))", height=620)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pxs-") as folder:
        place = DaemonDir(Path(folder), MORE)
        over = threading.Event()
        with (
            place.running(px, config_file=ConfigFile(str(place.file), {})) as daemon,
            running_console(place.file) as console,
        ):
            traffic = threading.Thread(target=send, args=(daemon, over))
            traffic.start()
            try:
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                    page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
                    about = {"version": "0.1.0", "host": "web-1", "read_only": False, "hide_bodies": False}
                    page.route("**/api/console", lambda route: route.fulfill(json=about))
                    page.goto(console.url)
                    take_all(page, console.origin)
            finally:
                over.set()
                traffic.join()


if __name__ == "__main__":
    main()
