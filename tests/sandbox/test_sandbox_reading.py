"""Events are read back by filters, date windows and pages."""

import json
from urllib.parse import quote

import pytest
from sandbox_client import EVENTS, NOW_MS, client_of, event


async def query(call, *filters: str, **parameters) -> dict:
    text = "&".join(
        [f"filter={quote(condition)}" for condition in filters] + [f"{k}={v}" for k, v in parameters.items()]
    )
    status, _, body = await call("GET", f"{EVENTS}?{text}")
    return {"status": status, **json.loads(body)}


async def test_events_are_read_back_by_filters(make_box, autojump_clock):
    box = make_box()
    async with client_of(box) as call:
        for seq, (user, name) in enumerate([("a", "Login"), ("b", "Login"), ("a", "Logout"), ("A", "Search")]):
            await call("POST", EVENTS, event(user, name, seq, date=NOW_MS - 1000 + seq))

        async def hits(*filters, **parameters):
            answer = await query(call, *filters, sort="date", **parameters)
            return [stored["attributes"]["seq"] for stored in answer["customEvents"]]

        assert await hits() == [0, 1, 2, 3]
        assert await hits("eventName==login") == [0, 1]
        assert await hits("identifyId==a") == [0, 2, 3]
        assert await hits("identifyId==a;eventName!=Login") == [2, 3]
        assert await hits("eventName==Logout", "identifyId==b") == [1, 2]
        assert await hits("eventName~log") == [0, 1, 2]
        assert await hits("eventName!~log") == [3]
        assert await hits(f"date>={NOW_MS - 998}") == [2, 3]
        assert await hits(f"date>{NOW_MS - 1000};date<{NOW_MS - 997}") == [1, 2]
        assert await hits(f"date<={NOW_MS - 1000}") == [0]
        assert await hits("eventName==Unknown") == []


async def test_the_window_is_one_day_by_default_and_at_most_190_days(make_box, autojump_clock):
    day_ms = 86_400_000
    box = make_box()
    async with client_of(box) as call:
        await call("POST", EVENTS, event(seq=1, date=NOW_MS - 2 * day_ms))
        await call("POST", EVENTS, event(seq=2))
        assert (await query(call))["totalHits"] == 1
        assert (await query(call, dateRangeStart=NOW_MS - 3 * day_ms))["totalHits"] == 2
        assert (await query(call, dateRangeStart=NOW_MS - 190 * day_ms, dateRangeEnd=NOW_MS))["totalHits"] == 2
        refused = await query(call, dateRangeStart=NOW_MS - 191 * day_ms)
        assert (refused["status"], refused["externalapierror"]["message"]) == (400, "Exceeded date range190days")


async def test_scrolling_returns_each_event_once_while_others_arrive(make_box, autojump_clock):
    box = make_box(per_second=0)
    async with client_of(box) as call:
        for seq in range(60):
            await call("POST", EVENTS, event(seq=seq, date=NOW_MS))
        seen, parameters = [], {}
        while True:
            page = await query(call, **parameters)
            assert page["totalHits"] == 60
            seen += [stored["attributes"]["seq"] for stored in page["customEvents"]]
            parameters = {"scrollId": page["scrollId"]}
            assert page["scrollId"] is not None
            if len(page["customEvents"]) < 25:
                break
            await call("POST", EVENTS, event(seq=1000, date=NOW_MS))
        assert sorted(seen) == list(range(60))
        assert len((await query(call, pageSize=1000))["customEvents"]) == 62


@pytest.mark.parametrize(
    "parameters",
    ["filter=nonsense", "filter=color==red", "filter=date>x", "pageSize=1001", "pageSize=0", "pageSize=x", "sort=name", "scrollId=x"],
)  # fmt: skip
async def test_an_invalid_query_is_400(make_box, parameters):
    box = make_box()
    async with client_of(box) as call:
        assert (await call("GET", f"{EVENTS}?{parameters}"))[0] == 400
