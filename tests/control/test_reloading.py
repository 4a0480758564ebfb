"""A running daemon whose configuration is read again: what goes on by the new one, and what people are told."""

from living import Living, Place, always, wait_until

from sidecar.client import Client

DAY = "[deliver]\nper_day = 1\nreserve_for_high = 0\n"


def change(daemon: Living, old: str, new: str) -> None:
    """Have the daemon read its configuration with one change."""
    text = daemon.place.file.read_text()
    assert old in text
    daemon.reload(text.replace(old, new))


def reloading(daemon: Living) -> list[str]:
    """What every status says of the last reload."""
    return [said for said in daemon.status()["warnings"] if "restart" in said or "reloaded" in said]


def test_a_larger_day_lets_go_on_what_waited_for_the_next_one(tmp_path):
    with Place(tmp_path, DAY).living() as daemon:
        for number in range(3):
            daemon.track(f"u{number}", "Feature Used")
        wait_until(lambda: daemon.status()["delivered"] == 1, "the first delivery")
        assert daemon.status()["delivering"] is False
        change(daemon, "per_day = 1", "per_day = 100")
        assert daemon.settle()["delivered"] == 3
        assert daemon.status()["quota"]["limit"] == 100
        assert reloading(daemon) == []


def test_people_are_written_from_the_reload_on(tmp_path):
    with Place(tmp_path).living() as daemon:
        daemon.reload(daemon.place.file.read_text() + '[people]\nusers = "upsert"\n')
        with Client(daemon.place.unix) as client:
            client.identify("u1", {"plan": "gold"})
        assert daemon.settle()["delivered"] == 1
        assert daemon.network.sent[0].path == "/v1/users/u1"


def test_an_outage_backs_off_as_the_new_configuration_says(tmp_path):
    with Place(tmp_path, '[deliver]\nretry_initial = "1h"\nretry_max = "1h"\n').living(always(429)) as daemon:
        daemon.reload(daemon.place.file.read_text().replace("1h", "10s"))
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "waiting", "the wait")
        assert daemon.status()["next_try_in_s"] <= 10


def test_every_status_names_what_waits_for_a_restart_until_it_is_taken_back(tmp_path):
    with Place(tmp_path, DAY).living() as daemon:
        daemon.reload(daemon.place.file.read_text() + 'order = "none"\n[identity]\nmax_users = 5\n')
        assert reloading(daemon) == ["Changes that wait for a restart: identity.max_users, deliver.order."]
        change(daemon, "per_day = 1", 'per_day = "many"')
        assert len(reloading(daemon)) == 1
        assert "deliver.per_day" in reloading(daemon)[0]
        daemon.reload(daemon.place.file.read_text())
        assert reloading(daemon) == []
