"""The console in a real browser: every screen, every action to its effect, axe, and pages of other origins.

Screenshots of every screen, in both themes and at three widths, are written to ``tests/console/screenshots`` for a person
to look at. axe.min.js is axe-core 4.14.1 (MPL-2.0, https://github.com/dequelabs/axe-core), byte for byte as published.
"""

import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from console_process import ConsoleProcess, running_console
from running_daemon import DaemonDir, RunningDaemon, wait_until

from sidecar.config import ConfigFile
from sidecar.control.client import DaemonClient
from sidecar.errors import Failed
from sidecar.px import PxAnswer

pytestmark = pytest.mark.console

CHROMIUM = shutil.which("chromium")
AXE = Path(__file__).with_name("axe.min.js")
SHOTS = Path(__file__).with_name("screenshots")
SCREENS = ("live", "events", "dead", "mapping", "products", "reconcile", "health")
WIDTHS = (390, 900, 1500)
EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
EVIL_FILE = '"><img src=x onerror=alert(1)>.toml'
EVIL_RULES = "".join(f"{json.dumps(EVIL + name)} = {json.dumps(EVIL)}\n" for name in ("", "2"))
MORE = """[[source]]
write_key = "wk_very_secret"
property_key = "AP-YYYYYYYYYY-2"
[mapping.events]
"Report Exported" = "Exported a report"
"Nobody Sends This" = "Nothing"
[mapping.attributes]
rename = { planName = "plan" }
drop = ["email"]
"""


async def px(request):
    """PX: refuses names with Refused, counts and reads back."""
    if request.method == "GET":
        body = {"customEvents": [], "totalHits": 3}
        if found := re.search(r"dateRangeStart=(\d+)", request.path):
            body["customEvents"] = [{"date": int(found[1]) + 60_000}]
        return PxAnswer(200, json.dumps(body).encode(), content_type="application/json")
    if b"Refused" in request.body:
        return PxAnswer(400, json.dumps({"message": f"unknown {EVIL}"}).encode(), content_type="application/json")
    return PxAnswer(201, b"{}", content_type="application/json")


class Stage(DaemonDir):
    """A daemon, a console and a browser page that reports what must not happen."""

    daemon: RunningDaemon
    console: ConsoleProcess

    def some_events(self) -> None:
        for number in range(30):
            name = ("Report Exported", "Feature Used", "Refused Thing", EVIL)[number % 4]
            properties = {"planName": "pro", "email": "ann@example.com", "number": number, EVIL: EVIL}
            self.daemon.track(f"user-{number % 5}", name, properties=properties)
        self.daemon.settle()


@contextmanager
def stage(
    folder: Path, *options: str, variables: dict[str, str] | None = None, more: str = MORE, name: str = "config.toml"
) -> Iterator[Stage]:
    place = Stage(folder, more)
    place.file = place.file.rename(folder / name)
    with (
        place.running(px, config_file=ConfigFile(str(place.file), variables or {})) as place.daemon,
        running_console(place.file, *options) as place.console,
    ):
        yield place


@pytest.fixture
def place(tmp_path):
    with stage(tmp_path) as ready:
        yield ready


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def open_page(
    browser, place: Stage, *, screen: str = "live", url: str | None = None, expected: tuple[str, ...] = (), **context
):
    """Open the page and sign in. At the end: no console error but ``expected``, no dialog, no request elsewhere."""
    wrong: list[str] = []
    tab = browser.new_context(**context)
    page = tab.new_page()
    page.set_default_timeout(8_000)
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(place.console.origin) or request.url.startswith("blob:") or wrong.append(request.url)
        ),
    )
    try:
        page.goto(url or place.console.press_enter())
        page.wait_for_selector("nav")
        if screen != "live":
            page.goto(f"{place.console.origin}/#/{screen}")
        page.wait_for_selector("h1")
        yield page
        assert [text for text in wrong if not any(part in text for part in expected)] == []
    finally:
        tab.close()


def when(page, expression: str) -> None:
    """Wait until the expression is true. Playwright's own way evaluates text in the page, which the CSP forbids."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")


def violations(page) -> list[str]:
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{rule['id']}: {node['html'][:150]}" for rule in found for node in rule["nodes"][:3]]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("amount", ["nothing", "some"])
def test_every_screen_is_accessible_and_fits(browser, tmp_path, theme, width, amount):
    SHOTS.mkdir(exist_ok=True)
    found = []
    with stage(tmp_path) as place:
        if amount == "some":
            place.some_events()
        size = {"width": width, "height": 900}
        with open_page(browser, place, viewport=size, color_scheme=theme, reduced_motion="reduce") as page:
            for screen in SCREENS:
                page.goto(f"{place.console.origin}/#/{screen}")
                page.wait_for_selector("h1")
                if screen == "live" and amount == "some":
                    place.daemon.track("user-1", "Feature Used", properties={"n": 1})
                    page.wait_for_selector("td button.link")
                if screen == "health":
                    page.wait_for_selector("b.good")
                page.wait_for_timeout(700)
                page.screenshot(path=SHOTS / f"{screen}-{amount}-{theme}-{width}.png", full_page=True)
                found += [f"{screen}: {text}" for text in violations(page)]
                overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                if overflow > 0:
                    found.append(f"{screen}: {overflow} px wider than the window")
    assert not found, "\n".join(found)


def test_the_code_leaves_the_address_and_works_once(browser, place):
    url = place.console.press_enter()
    with open_page(browser, place, url=url) as page:
        assert "code" not in page.url
        page.reload()  # the token outlives a reload
        page.wait_for_selector(".tiles")
    stolen = browser.new_page()
    stolen.goto(url)
    stolen.wait_for_selector("text=press Enter in the terminal")
    assert stolen.query_selector("nav") is None
    stolen.close()


def test_filters_live_in_the_address(browser, place):
    place.some_events()
    with open_page(browser, place, screen="events") as page:
        page.fill("input[name=name]", "Feature Used")
        page.click("text=Search")
        page.wait_for_url("**/#/events?name=Feature+Used")
        when(page, "document.querySelectorAll('tbody tr').length === 8")
        page.select_option("select[name=state]", "dead")
        page.click("text=Search")
        page.wait_for_selector("text=No event found")
        page.go_back()
        when(page, "document.querySelectorAll('tbody tr').length === 8")
        page.click("tbody a >> nth=0")
        page.wait_for_selector("h1:has-text('Feature Used')")
        page.wait_for_selector("text=PX answered 201")


def test_the_live_view_finds_a_rare_event_and_holds_still(browser, place):
    with open_page(browser, place) as page:
        page.fill("input[name=text]", "needle")
        page.click("text=Filter")
        page.wait_for_selector("text=/A sample: 0 of 0/")
        for number in range(60):
            place.daemon.track("u", "Feature Used", properties={"text": "needle" if number == 50 else "hay"})
        page.click("td button.link")
        page.wait_for_selector("text=PX answered 201")
        page.wait_for_selector("text=The list holds still")
        place.daemon.track("u", "Feature Used", properties={"text": "needle"})
        page.wait_for_timeout(2_500)
        assert page.locator("td button.link").count() == 1
        page.click("td button.link")
        when(page, "document.querySelectorAll('td button.link').length === 2")


def test_a_new_filter_ends_the_hold_of_a_row_that_left(browser, place):
    """The list held still for the row that had been open, so that it stayed empty without saying why."""
    with open_page(browser, place) as page:
        place.daemon.track("u", "Feature Used")
        page.click("td button.link")
        page.wait_for_selector("text=The list holds still")
        page.fill("input[name=name]", "Report Opened")
        page.click("text=Filter")
        page.wait_for_selector("text=The list holds still", state="detached")
        place.daemon.track("u", "Report Opened")
        page.wait_for_selector("td button.link >> text=Report Opened")


def test_a_hidden_tab_stops_its_stream(browser, place):
    sample = place.daemon.app.telemetry.sample
    with open_page(browser, place) as page:
        wait_until(lambda: sample.listening, "the stream")
        hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}}); document.dispatchEvent(new Event('visibilitychange'))"
        page.evaluate(hide.format("true"))
        wait_until(lambda: not sample.listening, "its end")
        page.evaluate(hide.format("false"))
        wait_until(lambda: sample.listening, "its return")


def test_script_in_everything_stays_text(browser, tmp_path):
    """In names, users, keys, values, PX's answers, the TOML text, its file's name and the address."""
    with stage(
        tmp_path, more=MORE.replace("[mapping.attributes]", EVIL_RULES + "[mapping.attributes]"), name=EVIL_FILE
    ) as place:
        place.some_events()
        place.daemon.track(EVIL, EVIL, properties={EVIL: EVIL})
        place.daemon.settle()
        with open_page(browser, place) as page:
            for screen, seen in (
                ("live", "[aria-label='Sampled events']"),
                ("events", "td >> text=onerror"),
                ("dead", "td >> text=onerror"),
                ("mapping", "label >> text=onerror"),
                ("health", "p >> text=onerror"),
                (f"events?user={EVIL}", "td >> text=onerror"),
                ("events?id=31", "td >> text=onerror"),
                (f"dead?reason=refused&name={EVIL}", "h2 >> text=onerror"),
                (f"mapping?name={EVIL}", "summary >> text=onerror"),
            ):
                page.goto(f"{place.console.origin}/#/{screen}")
                page.locator(seen).first.wait_for()
                assert page.locator("img").count() == 0, screen


def test_ten_thousand_names_leave_the_page_usable(browser, place):
    place.daemon.client.post("/v1/pause")
    for start in range(0, 10_000, 1_000):
        events = [{"type": "track", "event": f"Name {n}", "userId": "u"} for n in range(start, start + 1_000)]
        imported = [{"propertyKey": "AP-XXXXXXXXXX-2", "receivedMs": 1, "event": event} for event in events]
        place.daemon.client.post("/v1/import", {"events": imported})
    with open_page(browser, place, screen="mapping") as page:
        page.locator("[aria-label='Names seen'] tbody tr").nth(1_999).wait_for(timeout=20_000)
        assert page.locator("[aria-label='Names seen'] tbody tr").count() == 2_000
        page.click("nav >> text=Live")
        page.wait_for_selector(".tiles")


def test_a_refusal_that_quotes_script_stays_text(browser, place):
    place.some_events()
    with open_page(browser, place) as page:
        page.goto(f"{place.console.origin}/#/dead?reason=refused&name=Refused+Thing")
        page.wait_for_selector("text=onerror=alert(1)")


def test_dead_letters_are_replayed_with_a_count_first(browser, place):
    place.some_events()
    wait_until(lambda: place.daemon.status()["dead"] == 7, "seven dead letters")
    place.daemon.network.script = accept_all
    with open_page(browser, place, screen="dead") as page:
        page.click("text=Refused Thing")
        page.click("text=Replay …")
        page.wait_for_selector("dialog >> text=Replay 7 events?")
        page.click("dialog >> text=Cancel")
        assert place.daemon.status()["dead"] == 7
        page.click("text=Replay …")
        page.click("dialog >> button.main")
        page.wait_for_selector("text=Replayed 7 of 7")
        page.locator("a[href^='#/events?id=']").first.wait_for(state="detached")
    assert place.daemon.settle()["dead"] == 0
    assert place.daemon.client.get("/v1/audit")["changes"][0]["action"] == "dead retry"


def test_a_group_without_a_name_is_that_group_alone(browser, place):
    """Its letters and its export were those of all names with its reason."""
    bad = [{"type": "track", "userId": "u"}, {"type": "track", "event": "Named", "userId": {}}]
    DaemonClient(place.unix).post("/v1/batch", {"batch": bad})
    with open_page(browser, place, screen="dead") as page:
        page.click("text=(no name)")
        page.wait_for_selector("tr.on >> text=(no name)")
        page.locator("a[href^='#/events?id=']").first.wait_for()
        assert page.locator("a[href^='#/events?id=']").count() == 1
        with page.expect_download() as download:
            page.click("text=Export")
        assert len(Path(download.value.path()).read_text().splitlines()) == 1


def test_a_replay_is_cancelled_between_its_pages(browser, place):
    place.some_events()
    wait_until(lambda: place.daemon.status()["dead"] == 7, "seven dead letters")
    with open_page(browser, place, screen="dead?reason=refused&name=Refused+Thing") as page:
        page.route("**/api/v1/dead/retry", lambda route: route.fulfill(json={"moved": 0, "next": 1}))
        page.click("text=Replay …")
        page.click("dialog >> button.main")
        page.click("section >> button:has-text('Cancel')")
        page.wait_for_selector("text=/Replayed \\d+ of 7, cancelled/")
    assert place.daemon.status()["dead"] == 7


async def accept_all(_request):
    return PxAnswer(201, b"{}", content_type="application/json")


def test_dead_letters_are_discarded_and_exported(browser, place):
    place.some_events()
    wait_until(lambda: place.daemon.status()["dead"] == 7, "seven dead letters")
    with open_page(browser, place, screen="dead?reason=refused&name=Refused+Thing") as page:
        with page.expect_download() as download:
            page.click("text=Export")
        assert len(Path(download.value.path()).read_text().splitlines()) == 7
        page.click("text=Discard …")
        page.click("dialog >> button.bad")
        page.wait_for_selector("text=Discarded 7 of 7")
    assert place.daemon.status()["dropped_by_reason"] == {"discarded": 7}


def test_a_mapping_is_tried_on_real_events_and_saved(browser, place):
    place.some_events()
    with open_page(browser, place, screen="mapping") as page:
        page.wait_for_selector("text=Matches no recent event: mapping.events.Nobody Sends This")
        page.select_option("select[name=kind]", "events")
        page.fill("input[name=name]", "Feature Used")
        page.fill("input[name=value]", "Used a feature")
        page.click("form button")
        page.wait_for_selector("td.diff >> text=Used a feature")
        page.wait_for_selector("text=/8 of \\d+ real events would change/")
        page.click("text=Review and save")
        page.wait_for_selector("dialog >> text=Used a feature")
        page.click("dialog >> text=Save and reload")
        page.wait_for_selector("text=Saved and in force")
    assert place.daemon.app.config.mapping.events["Feature Used"] == "Used a feature"
    assert 'write_key = "wk_very_secret"' in place.file.read_text()


def test_a_mapping_rule_is_changed_and_removed_by_forms(browser, place):
    place.some_events()
    with open_page(browser, place, screen="mapping") as page:
        rules = page.locator("[aria-label='Rules in the text']")
        rules.get_by_role("row").filter(has_text="Nobody Sends This").get_by_text("Change").click()
        assert page.input_value("input[name=name]") == "Nobody Sends This"
        page.fill("input[name=name]", "Feature Used")
        page.fill("input[name=value]", "Used")
        page.click("form button")
        rules.get_by_text("Feature Used").wait_for()
        assert "Nobody Sends This" not in page.input_value("textarea")
        page.click("[aria-label='Remove events Feature Used']")
        rules.get_by_text("Feature Used").wait_for(state="detached")
        assert "Feature Used" not in page.input_value("textarea")


def test_the_preview_is_grey_while_the_text_is_wrong(browser, place):
    place.some_events()
    with open_page(browser, place, screen="mapping", expected=("409",)) as page:
        page.wait_for_selector("details")
        text = page.input_value("textarea")
        assert "wk_very_secret" not in text
        page.fill("textarea", text + "[mapping.fieldz]\n")
        page.wait_for_selector("[role=alert] >> text=/line \\d+/")
        page.wait_for_selector(".grey details")
        page.wait_for_selector(".grey [aria-label='Names seen']")
        assert page.is_disabled("text=Review and save")
        page.fill("textarea", text)
        when(page, "!document.querySelector('.grey')")


def test_a_linked_file_is_managed_elsewhere(browser, tmp_path):
    with stage(tmp_path) as place:
        real = tmp_path / "real.toml"
        place.file.rename(real)
        place.file.symlink_to(real)
        with open_page(browser, place, screen="mapping") as page:
            page.wait_for_selector("text=Managed elsewhere")
            page.fill("textarea", page.input_value("textarea").replace("Exported a report", "Export"))
            page.click("text=Review and save")
            page.wait_for_selector('dialog >> text=+"Report Exported" = "Export"')
            snippet = page.text_content("[aria-label=Snippet]")
            assert snippet.strip() == '[mapping.events]\n"Report Exported" = "Export"'
            page.wait_for_selector("dialog >> button:has-text('Copy')")
        assert "Exported a report" in real.read_text()


def test_copy_is_offered_where_the_browser_can_copy(browser, tmp_path):
    """Only a secure context has a clipboard: at an address of the network "Copy" closed the window and copied nothing."""
    with stage(tmp_path) as place:
        place.file.write_text("# managed elsewhere\n" + place.file.read_text())
        with open_page(browser, place) as page:
            page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
            page.goto(f"{place.console.origin}/#/mapping")
            page.reload()
            page.fill("textarea", page.input_value("textarea").replace("Exported a report", "Export"))
            page.click("text=Review and save")
            page.click("dialog >> button:has-text('Close')")
            assert page.locator("dialog").count() == 0


def test_a_file_that_was_changed_meanwhile_is_loaded_again(browser, place):
    """The refusal says "load it again", and no control of the page did."""
    with open_page(browser, place, screen="mapping", expected=("409",)) as page:
        page.fill("textarea", page.input_value("textarea") + "# mine\n")
        place.file.write_text(place.file.read_text() + "# theirs\n")
        page.click("text=Review and save")
        page.click("dialog >> text=Save and reload")
        page.wait_for_selector("[role=alert]:has-text('load it again')")
        page.click("text=Load again")
        when(page, "/# theirs\\n$/.test(document.querySelector('textarea').value)")
        assert page.locator("[role=alert]").count() == 0


def test_a_product_is_added_step_by_step(browser, place):
    with open_page(browser, place, screen="products") as page:
        page.fill("input[name=product]", "AP-ZZZZZZZZZZ-2")
        page.click("form >> text=Add")
        key = page.text_content("code")
        page.click("text=Review and save")
        page.click("dialog >> text=Save and reload")
        page.wait_for_selector("td >> text=AP-ZZZZZZZZZZ-2")
        page.click("tr:has-text('AP-ZZZZZZZZZZ-2') >> text=Send a test event")
        page.wait_for_selector("text=Read back: PX shows the event.")
    assert key in place.file.read_text()
    sent = [json.loads(request.body) for request in place.daemon.network.sent if request.method == "POST"]
    assert sent[0]["propertyKey"] == "AP-ZZZZZZZZZZ-2"


def test_reconcile_says_that_nothing_was_delivered(browser, place):
    with open_page(browser, place, screen="reconcile") as page:
        page.click("text=Ask PX")
        page.wait_for_selector("text=Nothing was delivered then")
        assert page.locator("tbody tr").count() == 0


MANY_NAMES = {
    "since_ms": 0,
    "until_ms": 1,
    "complete_since_ms": 0,
    "left_out": 23,
    "problem": "",
    "names": [{"name": "Feature Used", "delivered": 1, "px": 1}],
}


def test_reconcile_shows_the_counts_side_by_side(browser, place):
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    for number in range(5):
        place.daemon.track(f"user-{number}", "Feature Used", timestamp=hour_ago)
    place.daemon.settle()

    def backdate(store, _now_ms):
        store.connection.execute("UPDATE events SET settled_ms = settled_ms - 3600000")

    place.daemon.run(place.daemon.app.outbox.write, backdate)
    with open_page(browser, place, screen="reconcile") as page:
        page.click("text=Ask PX")
        row = page.locator("[aria-label=Counts] tbody tr")
        row.wait_for()
        assert row.locator("td").all_inner_texts() == ["Feature Used", "5", "3", "2 missing"]
        page.route("**/api/v1/reconcile*", lambda route: route.fulfill(json=MANY_NAMES))
        page.click("text=Ask PX")
        page.wait_for_selector("text=And 23 more names.")


def test_delivery_is_paused_resumed_and_reloaded(browser, place):
    with open_page(browser, place, screen="health") as page:
        page.click("text=Pause delivery")
        page.wait_for_selector("h2:has-text('paused')")
        assert place.daemon.status()["state"] == "paused"
        page.click("text=Resume delivery")
        page.wait_for_selector("h2:has-text('idle'), h2:has-text('delivering')")
        page.click("text=Reload configuration")
        page.wait_for_selector("text=reload")
        page.wait_for_selector("b:has-text('pause')")


FLEET = {"name": "shop", "state": "alone", "rate": 190.0, "used": 12_345, "problem": f"The engine is away. {EVIL}"}
MEMBERS = [
    {"host": "web-1", "this": True, "connected": True, "alone_per_second": 1.9, "granted": 700},
    {"host": EVIL, "this": False, "connected": False, "alone_per_second": 0.5, "granted": 300},
]


def test_health_shows_the_members_of_the_fleet(browser, place):
    status = place.daemon.status() | {"fleet": FLEET}
    with open_page(browser, place) as page:
        page.route("**/api/v1/status", lambda route: route.fulfill(json=status))
        page.route("**/api/v1/fleet", lambda route: route.fulfill(json={"fleet": FLEET, "members": MEMBERS}))
        page.goto(f"{place.console.origin}/#/health")
        page.wait_for_selector("text=this host is alone; all share 190 per second, 12,345 requests of the day are used")
        page.wait_for_selector("[role=alert] >> text=The engine is away.")
        rows = page.locator("[aria-label=Members] tbody tr").all_inner_texts()
        assert rows == ["web-1 (this host)\tconnected\t700\t1.9", f"{EVIL}\tabsent\t300\t0.5"]


PROBLEMS = [
    {"severity": "delivery", "message": f"PX answered 401: the API key is invalid; write a new one. {EVIL}"},
    {"severity": "loss", "message": "2 events are dead (refused 2) and will not be sent; look why."},
    {"severity": "limit", "message": "95% of the day's quota is used."},
    *({"severity": "note", "message": f"Rule {number} matched nothing."} for number in range(4)),
]


def test_problems_are_shown_as_status_ranks_them(browser, place):
    status = place.daemon.status() | {"state": "paused", "problems": PROBLEMS}
    with open_page(browser, place) as page:
        page.route("**/api/v1/status", lambda route: route.fulfill(json=status))
        page.reload()
        page.wait_for_selector("text=2 more on Health")
        shown = page.locator(".note").all_inner_texts()
        assert shown[0] == PROBLEMS[0]["message"]
        assert shown[2:4] == ["Near a limit: 95% of the day's quota is used.", "Note: Rule 0 matched nothing."]
        assert len(shown) == 5
        page.click("text=2 more on Health")
        page.wait_for_selector("text=Rule 3 matched nothing")
        assert page.locator(".note").count() == len(PROBLEMS)


def test_a_key_that_a_variable_sets_is_named_before_a_save(browser, tmp_path):
    variables = {"PX_SIDECAR_MAPPING_PRESET": "none"}
    with stage(tmp_path, variables=variables) as place, open_page(browser, place, screen="mapping") as page:
        page.wait_for_selector("text=/Set by variables of the daemon.* mapping.preset by PX_SIDECAR_MAPPING_PRESET/")
        page.fill("textarea", page.input_value("textarea") + '[mapping]\npreset = "b2b-saas"\n')
        page.click("text=Review and save")
        page.wait_for_selector(
            "dialog >> text=mapping.preset is set by the daemon's variable PX_SIDECAR_MAPPING_PRESET"
        )


def test_a_delivered_event_is_asked_of_px(browser, place):
    place.daemon.track("u", "Feature Used", context={"groupId": "acme"})
    place.daemon.settle()
    with open_page(browser, place, screen="events?id=1") as page:
        page.wait_for_selector("td >> text=acme from context.groupId of the event itself")
        page.wait_for_selector("td >> text=its name in PX is Feature Used")
        page.click("text=Ask PX for it")
        page.wait_for_selector("text=PX shows this event.")


def test_a_question_to_px_that_fails_has_ended(browser, place):
    """The page said "PX is asked …" beside the error."""
    place.daemon.track("u", "Feature Used")
    place.daemon.settle()
    with open_page(browser, place, screen="events?id=1", expected=("409",)) as page:
        page.route("**/api/v1/verify?*", lambda route: route.fulfill(status=409, json={"error": "PX is away."}))
        page.click("text=Ask PX for it")
        page.wait_for_selector("[role=alert]:has-text('PX is away.')")
        when(page, "!document.body.textContent.includes('PX is asked')")


def test_a_late_story_does_not_replace_that_of_another_event(browser, place):
    """The address named event 2, and the page showed event 1."""
    for name in ("First", "Second"):
        place.daemon.track("u", name)
    place.daemon.settle()
    held = []
    with open_page(browser, place) as page:
        page.route("**/api/v1/trace?id=1", lambda route: held.append(route))
        page.goto(f"{place.console.origin}/#/events?id=1")
        wait_until(lambda: page.wait_for_timeout(20) or held, what="the first question")
        page.goto(f"{place.console.origin}/#/events?id=2")
        page.wait_for_selector("h1:has-text('Second')")
        held[0].continue_()
        page.wait_for_timeout(300)
        assert "Second" in page.text_content("h1")


def test_an_event_that_is_not_there_shows_what_came_instead(browser, place):
    place.daemon.track("u", "Feature Used")
    place.daemon.settle()
    with pytest.raises(Failed):
        DaemonClient(place.unix).post("/v1/batch", {"batch": 3})
    with open_page(browser, place, screen="events?name=Feature+used&user=nobody") as page:
        page.wait_for_selector("text=No event found")
        page.wait_for_selector("p:has-text('Names like it') >> a >> text=Feature Used")
        page.wait_for_selector("text=Nothing was received of this user.")
        page.wait_for_selector(".note >> text=/A call was refused.*batch/")
        assert page.locator("thead").count() == 0


def test_a_dead_letter_without_a_message_id_has_its_story(browser, place):
    DaemonClient(place.unix).post("/v1/batch", {"batch": ["not an object"]})
    place.daemon.settle()
    with open_page(browser, place, screen="dead?reason=bad_event") as page:
        page.click("section p a")
        page.wait_for_selector("td >> text=dead: bad_event")


def test_an_older_search_does_not_replace_a_newer_one(browser, place):
    """Its pages came later, and were shown below the filter of the newer one."""
    place.some_events()
    old = place.daemon.client.get("/v1/events", {"name": "Feature Used"})
    late = []
    with open_page(browser, place, screen="events?name=Report+Exported") as page:
        page.wait_for_selector("td >> text=Report Exported")
        page.route("**/api/v1/events?name=Feature+Used*", lambda route: late.append(route))
        page.goto(f"{place.console.origin}/#/events?name=Feature+Used")
        page.wait_for_selector("text=Searching …")
        assert page.locator("tbody tr").count() == 0  # not the rows of the filter before
        page.goto(f"{place.console.origin}/#/events?name=Refused+Thing")
        page.wait_for_selector("td >> text=Refused Thing")
        late[0].fulfill(json=old)
        page.wait_for_timeout(200)
        assert page.locator("td >> text=Feature Used").count() == 0
        assert page.locator("td >> text=Refused Thing").count() > 0


def test_what_cannot_be_read_is_said(browser, place):
    """Checks that gave no result were "Checking …" without end, and products that cannot be read an empty table."""
    no = {"error": "It gave no result; run it in a terminal."}
    with open_page(browser, place, expected=("409",)) as page:
        page.route("**/api/v1/checks", lambda route: route.fulfill(status=409, json=no))
        page.route("**/api/v1/config", lambda route: route.fulfill(status=409, json=no))
        for screen in ("health", "products"):
            page.goto(f"{place.console.origin}/#/{screen}")
            page.wait_for_selector("text=It gave no result")
        assert page.locator("text=Checking …").count() == 0


def test_a_write_key_is_shown_only_if_it_is_in_the_text(browser, place):
    with open_page(browser, place, screen="products", expected=("409",)) as page:
        page.route("**/api/file/edit", lambda route: route.fulfill(status=409, json={"error": "It does not fit."}))
        page.fill("input[name=product]", "AP-ZZZZZZZZZZ-2")
        page.click("form >> text=Add")
        page.wait_for_selector("text=It does not fit.")
        assert page.locator("text=Write key for the app").count() == 0


def test_a_product_with_sources_needs_a_write_key(browser, place):
    """Over TCP an event without a write key is refused once there is a source."""
    with open_page(browser, place, screen="products") as page:
        page.wait_for_selector("td >> text=none, over the Unix socket only")


def test_an_export_that_breaks_off_is_not_saved(browser, place):
    place.some_events()
    with open_page(browser, place, screen="dead?reason=refused&name=Refused+Thing", expected=("ERR_",)) as page:
        page.route("**/api/v1/dead/export*", lambda route: route.abort())
        page.click("text=Export")
        page.wait_for_selector("text=The connection is lost")


def test_a_search_that_is_not_at_its_end_does_not_say_no(browser, place):
    """Of ten million events it looks through a part, and offers the rest."""
    with open_page(browser, place) as page:
        page.route("**/api/v1/events?*", lambda route: route.fulfill(json={"events": [], "next": "0.5"}))
        page.goto(f"{place.console.origin}/#/events?name=Rare")
        page.wait_for_selector("text=None yet.")
        page.wait_for_selector("text=Older events")
        assert page.locator("text=No event found").count() == 0


def test_a_search_that_fails_does_not_say_no(browser, place):
    no = {"error": "The outbox cannot be read."}
    with open_page(browser, place, expected=("503",)) as page:
        page.route("**/api/v1/events?*", lambda route: route.fulfill(status=503, json=no))
        page.goto(f"{place.console.origin}/#/events?name=Rare")
        page.wait_for_selector("text=The outbox cannot be read.")
        assert page.locator("text=No event found").count() == 0


def test_events_are_searched_by_time(browser, place):
    place.daemon.track("u", "Feature Used")
    place.daemon.settle()
    tomorrow = (datetime.now().astimezone() + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    with open_page(browser, place, screen=f"events?until={tomorrow}") as page:
        page.wait_for_selector("tbody a")
        page.fill("input[name=until]", "")
        page.fill("input[name=since]", tomorrow)
        page.click("text=Search")
        page.wait_for_selector("text=No event found")


def test_the_support_bundle_holds_no_secret_and_no_body(browser, place):
    place.some_events()
    near = "User ann@example.com had 900 events today."
    quoted = "PX answered 400 (no: bob@example.com): the event is refused. PX said: bob@example.com"
    status = place.daemon.status() | {
        "warnings": [near],
        "problems": [
            {"severity": "limit", "message": near},
            {"severity": "loss", "message": "1 call was refused. The last, 5 s ago: carol@example.com"},
            {"severity": "loss", "message": "It is probed. The last try: no answer from dora@example.com"},
            *PROBLEMS,
        ],
        "last_problem": {"when": "2026-01-01T00:00:00Z", "message": quoted},
        "refused": {"by_code": {"bad_event": 1}, "last_s": 1, "last_message": "carol@example.com"},
    }
    with open_page(browser, place) as page:
        page.route("**/api/v1/status", lambda route: route.fulfill(json=status))
        page.goto(f"{place.console.origin}/#/health")
        page.wait_for_selector("text=/User ann@example.com had/")
        page.wait_for_selector("b.good")
        with page.expect_download() as download:
            page.click("text=Support bundle")
        text = Path(download.value.path()).read_text()
    bundle = json.loads(text)
    assert {"status", "config", "series", "checks", "log", "audit"} <= bundle.keys()
    assert "wk_very_secret" not in text
    assert "@example.com" not in text
    assert "onerror" not in json.dumps([group["detail"] for group in bundle["dead/groups"]["groups"]])
    assert bundle["dead/groups"]["groups"][0]["detail"].startswith("PX answered 400")
    assert PROBLEMS[1]["message"] in text


def test_read_only_shows_no_changing_control(browser, tmp_path):
    with stage(tmp_path, "--read-only") as place:
        place.some_events()
        with open_page(browser, place, screen="dead?reason=refused&name=Refused+Thing") as page:
            page.wait_for_selector("text=Export")
            for screen in ("dead?reason=refused&name=Refused+Thing", "products", "health"):
                page.goto(f"{place.console.origin}/#/{screen}")
                page.wait_for_timeout(300)
                for text in ("Replay …", "Discard …", "Send a test event", "Pause delivery", "Reload configuration"):
                    assert page.locator(f"text={text}").count() == 0


def test_hidden_bodies_show_names_and_counts_only(browser, tmp_path):
    with stage(tmp_path, "--hide-bodies") as place:
        place.some_events()
        with open_page(browser, place) as page:
            assert page.locator("nav a").all_text_contents() == ["Live", "Events", "Dead"]
            for screen in ("live", "events", "dead"):
                page.goto(f"{place.console.origin}/#/{screen}")
                page.wait_for_timeout(1_200)
                assert "user-1" not in page.content()


def test_the_page_continues_after_a_restart_of_the_daemon(browser, tmp_path):
    with stage(tmp_path) as place, open_page(browser, place, expected=("502",)) as page:
        page.wait_for_selector(".tiles")
        place.daemon.stop()
        page.wait_for_selector("text=The daemon does not answer")
        with place.running(px):
            when(page, "!document.querySelector('[role=alert]')")


def test_a_preview_that_failed_is_made_once_the_daemon_runs(browser, tmp_path):
    """The text stayed wrong, and could not be saved, until it was changed again."""
    with stage(tmp_path) as place, open_page(browser, place, screen="mapping", expected=("502",)) as page:
        page.wait_for_selector("text=Report Exported")
        place.daemon.stop()
        page.locator("textarea").press_sequentially("\n")
        page.wait_for_selector("[role=alert]:has-text('The daemon does not answer')")
        with place.running(px, config_file=ConfigFile(str(place.file), {})):
            page.wait_for_selector("[role=alert]", state="detached")
            assert page.is_enabled("text=Review and save")


def test_the_keyboard_is_enough(browser, place):
    with open_page(browser, place) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.locator("nav a >> text=Events").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("h1:has-text('Events')")


ATTACK = """<title>evil</title><body><script>
const target = new URLSearchParams(location.search).get('target'), done = []
const note = name => () => done.push(name)
const json = {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{"code": "x"}'}
const attempts = [
  fetch(target + '/api/v1/pause', json).then(r => r.text()).then(note('fetch'), note('refused')),
  fetch(target + '/api/v1/pause', {method: 'POST', mode: 'no-cors', body: '{}'}).then(r => r.text()).then(text => done.push(text ? 'read' : 'opaque'), note('refused')),
  fetch(target + '/api/v1/status', {credentials: 'include'}).then(r => r.text()).then(note('fetch'), note('refused')),
  new Promise(end => { const s = new EventSource(target + '/api/v1/live'); s.onmessage = () => { done.push('events'); end() }; s.onerror = () => { s.close(); end() } }),
  new Promise(end => { const s = new WebSocket(target.replace('http', 'ws') + '/api/v1/live'); s.onopen = () => { done.push('socket'); end() }; s.onerror = end }),
  new Promise(end => { const f = document.createElement('form'); f.method = 'POST'; f.enctype = 'text/plain'; f.target = 'frame'; f.action = target + '/api/v1/pause'
    document.body.append(Object.assign(document.createElement('iframe'), {name: 'frame', onload: end}), f); f.submit() }),
]
const late = () => new Promise(end => setTimeout(end, 4000))
Promise.all(attempts.map(one => Promise.race([one, late()]))).then(() => { document.title = 'done ' + done.join(' ') })
</script></body>"""


class EvilPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ATTACK.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Set-Cookie", "token=stolen; Path=/")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_page_of_another_origin_gets_nothing(browser, place):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), EvilPage)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    tab = browser.new_context()
    try:
        good = tab.new_page()
        good.goto(place.console.press_enter())
        good.wait_for_selector("nav")
        evil = tab.new_page()
        evil.goto(f"http://127.0.0.1:{server.server_port}/?target={place.console.origin}")
        when(evil, "document.title.startsWith('done')")
        outcome = evil.title()
        assert not {"fetch", "read", "events", "socket"} & set(outcome.split()), outcome
        assert tab.cookies(place.console.origin) == tab.cookies(
            f"http://127.0.0.1:{server.server_port}"
        )  # no port in a cookie
    finally:
        tab.close()
        server.shutdown()
        server.server_close()
    assert place.daemon.status()["state"] == "open"
    assert place.daemon.client.get("/v1/audit")["changes"] == []


def test_the_first_picture_comes_within_a_second(browser, place):
    with open_page(browser, place) as page:
        began = time.monotonic()
        page.reload()
        page.wait_for_selector(".tiles")
        assert time.monotonic() - began < 2  # 1 s on an idle machine
