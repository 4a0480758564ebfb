"""A reload applies the keys that a running daemon can change, and names those that wait for a restart."""

from sidecar.config import load_text, reloaded

BEFORE = '[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n'


def after(more: str):
    return reloaded(load_text(BEFORE), load_text(BEFORE + more))


def test_an_unchanged_file_changes_nothing():
    assert after("") == (load_text(BEFORE), [])


def test_pace_quota_retries_mapping_people_and_sources_apply():
    more = (
        '[deliver]\nper_second = 5\nper_day = 7\nhosts = 2\npace = "spread"\nreserve_for_high = 0\nmax_in_flight = 3\n'
        'max_age = "1h"\nretry_initial = "2s"\nretry_max = "3s"\n[mapping]\nunmapped = "drop"\n[people]\nusers = "upsert"\n'
        '[[source]]\nwrite_key = "wk"\n'
    )
    assert after(more) == (load_text(BEFORE + more), [])


def test_keys_that_need_a_restart_are_named_and_unchanged():
    in_force, waiting = after(
        '[deliver]\nper_second = 5\norder = "none"\nday = "utc"\ntimeout = "1s"\nstop_timeout = "2s"\n'
        '[outbox]\nmax_bytes = "1GiB"\n[identity]\nmax_users = 5\n[log]\nlevel = "debug"\n[listen]\nhttp = ""\n'
    )
    assert set(waiting) == {
        *("deliver.order", "deliver.day", "deliver.timeout", "deliver.stop_timeout"),
        *("outbox.max_bytes", "identity.max_users", "log.level", "listen.http"),
    }
    assert in_force == load_text(BEFORE + "[deliver]\nper_second = 5\n")


def test_a_changed_secret_is_named_and_not_shown():
    _, waiting = reloaded(load_text(BEFORE), load_text('[px]\nproperty_key = "AP-YYYYYYYYYY-2"\napi_key = "secret"\n'))
    assert waiting == ["px.property_key"], "a reload takes a new key"


def test_a_fleet_that_waits_for_a_restart_keeps_the_division_by_hosts():
    """Until the restart each of three hosts would have sent at the rate of all."""
    hosts = "[deliver]\nhosts = 3\n"
    in_force, waiting = reloaded(load_text(hosts), load_text(hosts + '[fleet]\nurl = "redis://h:1"\nname = "f"\n'))
    assert (in_force.fleet.url, in_force.deliver.hosts, in_force.deliver.host_per_second) == ("", 3, 190 / 3)
    assert waiting == ["fleet.url", "fleet.name", "deliver.hosts"]
