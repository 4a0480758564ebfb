"""What a running daemon takes over, and what it says has to wait."""

from sidecar.config import load_text, reloaded

BEFORE = '[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n'


def after(more: str):
    return reloaded(load_text(BEFORE), load_text(BEFORE + more))


def test_nothing_waits_when_nothing_has_changed():
    assert after("") == (load_text(BEFORE), [])


def test_rates_the_day_retries_mapping_people_and_sources_are_taken_over():
    more = (
        '[deliver]\nper_second = 5\nper_day = 7\nhosts = 2\npace = "spread"\nreserve_for_high = 0\nmax_in_flight = 3\n'
        'max_age = "1h"\nretry_initial = "2s"\nretry_max = "3s"\n[mapping]\nunmapped = "drop"\n[people]\nusers = "upsert"\n'
        '[[source]]\nwrite_key = "wk"\n'
    )
    assert after(more) == (load_text(BEFORE + more), [])


def test_every_key_that_waits_for_the_next_start_is_named_and_stays_as_it_was():
    in_force, waiting = after(
        '[deliver]\nper_second = 5\norder = "none"\nday = "utc"\ntimeout = "1s"\nstop_timeout = "2s"\n'
        '[outbox]\nmax_bytes = "1GiB"\n[identity]\nmax_users = 5\n[log]\nlevel = "debug"\n[listen]\nhttp = ""\n'
    )
    assert set(waiting) == {
        *("deliver.order", "deliver.day", "deliver.timeout", "deliver.stop_timeout"),
        *("outbox.max_bytes", "identity.max_users", "log.level", "listen.http"),
    }
    assert in_force == load_text(BEFORE + "[deliver]\nper_second = 5\n")


def test_a_changed_key_is_named_and_not_shown():
    _, waiting = reloaded(load_text(BEFORE), load_text('[px]\nproperty_key = "AP-YYYYYYYYYY-2"\napi_key = "secret"\n'))
    assert waiting == ["px.api_key", "px.property_key"]
