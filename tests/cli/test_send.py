"""`px-sidecar send`, through the command line."""

import json
import threading

from living import Place, always, wait_until


def test_send_ends_once_the_event_is_on_disk(place: Place, verb):
    with place.living() as daemon:
        ran = verb("send", "Feature Used", "--user", "u1", *place.flags)
        assert daemon.settle()["delivered"] == 1
    assert ran.code == 0
    assert ran.out.startswith("accepted: it is on disk")


def test_send_json_gives_the_message_id(place: Place, verb):
    with place.living() as daemon:
        ran = verb("send", "Feature Used", "--user", "u1", "--json", *place.flags)
        daemon.settle()
        event = daemon.asked.get("/v1/events", {"message_id": ran.json["messageId"]})["events"][0]
    assert ran.json["what"] == "accepted"
    assert event["user"] == "u1"


def test_send_wait_prints_the_payload_that_px_got(place: Place, verb):
    arguments = ["--user", "u1", "--account", "acme", "--property", "seats=5", "--property", "plan=gold", "--wait"]
    with place.living() as daemon:
        ran = verb("send", "Feature Used", *arguments, "--json", *place.flags)
        sent = json.loads(daemon.network.sent[0].body)
    assert ran.code == 0
    assert ran.json["what"] == "delivered"
    assert (ran.json["status"], ran.json["attempts"]) == (201, 1)
    assert ran.json["payload"] == sent
    assert (sent["identifyId"], sent["accountId"]) == ("u1", "acme")
    assert sent["attributes"] == {"seats": 5, "plan": "gold"}


def test_send_wait_of_a_dead_event_exits_1_and_says_why(place: Place, verb):
    body = b'{"externalapierror":{"status":"BAD_REQUEST","message":"eventName is unknown"}}'
    with place.living(always(400, body)):
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", *place.flags)
    assert ran.code == 1
    assert ran.out.startswith("dead: refused. PX answered 400 (eventName is unknown)")


def test_send_wait_of_a_dropped_event_exits_1(place: Place, verb):
    with place.living():
        ran = verb("send", "Feature Used", "--wait", *place.flags)
    assert ran.code == 1
    assert ran.out.startswith("dropped: no_user")


def test_send_wait_gives_up_with_the_reason_and_the_event_stays(place: Place, verb):
    with place.living(always(401)) as daemon:
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", "--timeout", "500ms", *place.flags)
        assert daemon.status()["pending"] == 1
    assert ran.code == 1
    assert "kept, but not delivered yet" in ran.err
    assert "API key is invalid" in ran.err


def test_send_needs_a_daemon(place: Place, verb):
    for more in ([], ["--wait"]):
        ran = verb("send", "Feature Used", *more, *place.flags)
        assert ran.code == 69
        assert ran.err.count("\n") == 1


def test_a_property_without_a_value_is_wrong_usage(place: Place, verb):
    ran = verb("send", "Feature Used", "--property", "seats", *place.flags)
    assert ran.code == 2
    assert "KEY=VALUE" in ran.err


def test_send_verify_reads_the_event_back_from_px(px, tmp_path, verb):
    place = px.place(tmp_path)
    with place.living(network=px.network(place)):
        ran = verb("send", "Feature Used", "--user", "u1", "--verify", "--json", *place.flags)
        shown = verb("send", "Feature Used", "--user", "u1", "--verify", *place.flags)
    assert (ran.code, ran.json["verified"]) == (0, True)
    assert "verified: PX shows the event" in shown.out


def test_send_verify_says_if_px_took_the_event_and_does_not_show_it(px, tmp_path, verb):
    place = px.place(tmp_path)  # where nothing of what this daemon delivers arrives
    with place.living():
        ran = verb("send", "Feature Used", "--user", "u1", "--verify", "--timeout", "1s", *place.flags)
    assert ran.code == 1
    assert "not verified" in ran.out


def test_send_verify_says_what_a_key_without_read_needs(px, tmp_path, verb):
    place = px.place(tmp_path)
    with place.living():
        ran = verb("send", "Used", "--user", "u1", "--verify", *place.flags, PX_SIDECAR_PX_API_KEY="another-key")
    assert ran.code == 1
    assert "Read permission" in ran.err


def test_send_wait_tells_of_attempts_that_failed_and_of_the_one_that_did_not(place: Place, verb):
    replies = iter([503, 201])

    async def recovers(request):
        return await always(next(replies))(request)

    with place.living(recovers):
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", *place.flags)
    assert ran.code == 0
    assert ran.err.startswith("attempt 1 failed: PX answered 503")
    assert ran.out.startswith("delivered: PX answered 201 at attempt 2\n")


def test_send_wait_says_that_the_event_is_kept_if_the_daemon_stops_meanwhile(place: Place, verb):
    with place.living(always(503)) as daemon:
        ran = []
        arguments = ["send", "Feature Used", "--user", "u1", "--wait", *place.flags]
        waiting = threading.Thread(target=lambda: ran.append(verb(*arguments)))
        waiting.start()
        wait_until(lambda: daemon.status()["retries"], "a failed attempt")
    waiting.join(10)
    assert ran[0].code == 1
    assert "The daemon stopped meanwhile; the event is kept (" in ran[0].err


def test_send_wait_gives_up_in_time_though_others_are_served_all_the_while(place: Place, verb):
    async def only_the_others(request):
        return await always(503 if b"Mine" in request.body else 201)(request)

    with place.living(only_the_others) as daemon:
        ended = threading.Event()

        def traffic() -> None:
            while not ended.wait(0.02):
                daemon.track("u1", "Other")

        others = threading.Thread(target=traffic)
        others.start()
        try:
            ran = verb("send", "Mine", "--wait", "--user", "u1", "--timeout", "400ms", *place.flags)
        finally:
            ended.set()
            others.join(10)
    assert ran.code == 1
    assert "kept, but not delivered yet" in ran.err


def test_a_time_that_is_none_is_wrong_usage(place: Place, verb):
    ran = verb("send", "Feature Used", "--wait", "--timeout", "soon", *place.flags)
    assert ran.code == 2
    assert "'soon'" in ran.err
    assert ran.out == ""
