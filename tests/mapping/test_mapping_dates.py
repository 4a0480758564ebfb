"""Timestamps by language: each form has the right value, or the time of receipt with a report."""

import pytest
from mapping_help import KEY, NOTHING_KNOWN, RECEIVED_MS, body_of, changes_by_field, map_one, mapper, track

from sidecar.mapping.dates import to_epoch_ms

T_MS = 1_717_689_600_000  # 2024-06-06T16:00:00Z
FRACTION_MS = T_MS + 123
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
RECEIPT = None

FORMS = [
    ("JavaScript toISOString", "2024-06-06T16:00:00.123Z", FRACTION_MS),
    ("JavaScript toString", "Thu Jun 06 2024 18:00:00 GMT+0200 (Central European Summer Time)", T_MS),
    ("JavaScript toString, German", "Thu Jun 06 2024 18:00:00 GMT+0200 (Mitteleuropäische Sommerzeit)", T_MS),
    ("JavaScript toUTCString", "Thu, 06 Jun 2024 16:00:00 GMT", T_MS),
    ("JavaScript toLocaleString", "6/6/2024, 4:00:00 PM", RECEIPT),
    ("JavaScript Date.now()", 1717689600123, FRACTION_MS),
    ("JavaScript Date.now() as text", "1717689600123", FRACTION_MS),
    ("Python datetime.isoformat()", "2024-06-06T16:00:00.123456", FRACTION_MS),
    ("Python str(datetime)", "2024-06-06 16:00:00.123456+00:00", FRACTION_MS),
    ("Python time.time()", 1717689600.123, FRACTION_MS),
    ("Python str(time.time())", "1717689600.123", FRACTION_MS),
    ("Python time.time_ns()", 1717689600123456789, FRACTION_MS),
    ("Python email.utils.formatdate()", "Thu, 06 Jun 2024 16:00:00 -0000", T_MS),
    ("Python time.ctime(), C asctime", "Thu Jun  6 16:00:00 2024", T_MS),
    ("Go RFC3339Nano", "2024-06-06T16:00:00.123456789Z", FRACTION_MS),
    ("Go Time.String()", "2024-06-06 18:00:00.123456789 +0200 CEST", FRACTION_MS),
    ("Go Time.String(), monotonic", "2024-06-06 16:00:00.123456789 +0000 UTC m=+0.000012345", FRACTION_MS),
    ("Go Time.String(), zone without a name", "2024-06-06 18:00:00 +0200 +0200", T_MS),
    ("Go RFC1123Z", "Thu, 06 Jun 2024 18:00:00 +0200", T_MS),
    ("Go RFC850", "Thursday, 06-Jun-24 16:00:00 GMT", T_MS),
    ("Go UnixDate", "Thu Jun  6 16:00:00 UTC 2024", T_MS),
    ("Go zero time", "0001-01-01T00:00:00Z", RECEIPT),
    ("Java Instant", "2024-06-06T16:00:00.123Z", FRACTION_MS),
    ("Java ZonedDateTime", "2024-06-06T18:00:00.123+02:00[Europe/Berlin]", FRACTION_MS),
    ("Java ZonedDateTime in UTC", "2024-06-06T16:00Z[UTC]", T_MS),
    ("Java ZonedDateTime, an offset as zone", "2024-06-06T18:00:00.123+02:00[UTC+02:00]", FRACTION_MS),
    ("a region behind a blank", "2024-06-06T18:00:00+02:00 [Europe/Berlin]", T_MS),
    ("a day and UTC", "2024-06-06 UTC", T_MS - 16 * 3_600_000),
    ("basic form and UTC", "20240606T160000 UTC", T_MS),
    ("strftime %Z", "2024-06-06 12:00:00 EDT", T_MS),
    ("strftime %Z, summer in Europe", "2024-06-06 18:00:00.123 CEST", FRACTION_MS),
    ("strftime %Z, Japan", "2024-06-07 01:00:00 JST", T_MS),
    ("strftime %Z, summer in Finland", "2024-06-06 19:00:00 EEST", T_MS),
    ("strftime %Z, an offset that changed", "2024-06-06 19:00:00 MSK", RECEIPT),
    ("Java Date.toString(), Sydney", "Fri Jun 07 02:00:00 AEST 2024", T_MS),
    ("strftime %Z, ambiguous zone", "2024-06-06 21:30:00 IST", RECEIPT),
    ("JavaScript Intl, British, a day", "6 June 2024", T_MS - 16 * 3_600_000),
    ("a day with its weekday", "Thursday, 6 June 2024", T_MS - 16 * 3_600_000),
    ("a day with a year of two digits", "24 Jun 06", RECEIPT),
    ("Java Date.toString()", "Thu Jun 06 12:00:00 EDT 2024", T_MS),
    ("Java Date.toString(), ambiguous zone", "Thu Jun 06 21:30:00 IST 2024", RECEIPT),
    ("Ruby Time#to_s", "2024-06-06 18:00:00 +0200", T_MS),
    ("Ruby Time#utc.to_s", "2024-06-06 16:00:00 UTC", T_MS),
    ("Ruby Time#httpdate", "Thu, 06 Jun 2024 16:00:00 GMT", T_MS),
    ("PHP DATE_ATOM", "2024-06-06T16:00:00+00:00", T_MS),
    ("PHP DATE_COOKIE", "Thursday, 06-Jun-2024 16:00:00 UTC", T_MS),
    ("PHP time()", 1717689600, T_MS),
    ("PHP time() as text", "1717689600", T_MS),
    (".NET round trip", "2024-06-06T16:00:00.1230000Z", FRACTION_MS),
    (".NET JavaScriptSerializer", "/Date(1717689600123)/", FRACTION_MS),
    (".NET DateTime.ToString()", "06/06/2024 16:00:00", RECEIPT),
    (".NET DateTime.MinValue", "0001-01-01T00:00:00", RECEIPT),
    ("Rust chrono Display", "2024-06-06 16:00:00.123 UTC", FRACTION_MS),
    ("Swift description", "2024-06-06 16:00:00 +0000", T_MS),
    ("Elixir DateTime.to_string", "2024-06-06 16:00:00Z", T_MS),
    ("PostgreSQL timestamptz", "2024-06-06 16:00:00+00", T_MS),
    ("ISO 8601 basic", "20240606T160000Z", T_MS),
    ("ISO 8601 with a comma", "2024-06-06T16:00:00,123Z", FRACTION_MS),
    ("lower case", "2024-06-06t16:00:00z", T_MS),
    ("JavaScript Intl, medium", "Jun 6, 2024, 4:00:00\u202fPM", T_MS),
    ("JavaScript Intl, long", "June 6, 2024 at 4:00:00 PM UTC", T_MS),
    ("JavaScript expanded year", "+002024-06-06T16:00:00.123Z", FRACTION_MS),
    ("JavaScript JSON.stringify(date)", '"2024-06-06T16:00:00.123Z"', FRACTION_MS),
    ("a number in scientific notation", "1.717689600123E12", FRACTION_MS),
    ("Java Double.toString(), seconds", "1.717689600123E9", FRACTION_MS),
    ("Go fmt.Sprint(float64), seconds", "1.7176896e+09", T_MS),
    ("half days", "2024-06-06 04:00:00 PM", T_MS),
    ("half days, noon", "2024-06-06 12:00:00 PM", T_MS - 4 * 3_600_000),
    ("half days, midnight", "2024-06-06 12:00 AM", T_MS - 16 * 3_600_000),
    ("half days, no such hour", "Jun 6, 2024 16:00:00 PM", RECEIPT),
    ("year first, slashes", "2024/06/06 16:00:00 UTC", T_MS),
    ("day first, dots", "06.06.2024 16:00:00", RECEIPT),
    ("an offset from UTC in words", "2024-06-06 18:00:00 UTC+2", T_MS),
    ("an offset from GMT in words", "2024-06-06 21:30:00 GMT+05:30", T_MS),
    ("a typographic minus", "2024-06-06T14:00:00\u221202:00", T_MS),
    ("hour 24", "2024-06-06T24:00:00Z", T_MS + 8 * 3_600_000),
    ("hour 24 and more", "2024-06-06T24:00:01Z", RECEIPT),
    ("git log", "Thu Jun 6 18:00:00 2024 +0200", T_MS),
    ("log of a web server", "06/Jun/2024:16:00:00 +0000", T_MS),
    ("date of a shell with half days", "Thu 06 Jun 2024 04:00:00 PM UTC", T_MS),
    ("Ruby on Rails inspect", "Thu, 06 Jun 2024 16:00:00.123456000 UTC +00:00", FRACTION_MS),
    ("Ruby on Rails inspect, Eastern Time", "Thu, 06 Jun 2024 12:00:00 EDT -04:00", T_MS),
    ("Rust time Display", "2024-06-06 16:00:00.123 +00:00:00", FRACTION_MS),
    ("Rust time Display before ten", "2024-06-06 9:00:00.0 +00:00:00", T_MS - 7 * 3_600_000),
    ("Elixir DateTime.to_string, Berlin", "2024-06-06 18:00:00+02:00 CEST Europe/Berlin", T_MS),
    ("a time of a region by its name alone", "2024-06-06 18:00:00 Europe/Berlin", RECEIPT),
    ("Java LocalDateTime and a region", "2024-06-06T18:00:00[Europe/Berlin]", RECEIPT),
    ("Java LocalDateTime and UTC", "2024-06-06T16:00:00[Etc/UTC]", T_MS),
    ("JavaScript Temporal", "2024-06-06T18:00:00+02:00[Europe/Berlin][u-ca=gregory]", T_MS),
    ("Python isoformat() + Z", "2024-06-06T16:00:00.123456+00:00Z", FRACTION_MS),
    ("an offset and Z that contradict it", "2024-06-06T18:00:00+02:00Z", RECEIPT),
    ("SQL Server", "Jun  6 2024  4:00PM", T_MS),
    ("JavaScript toLocaleString, Japanese", "2024/6/6 16:00:00", T_MS),
    ("year first, no leading zeros", "2024-6-6", T_MS - 16 * 3_600_000),
    ("JavaScript Intl, British, medium", "6 Jun 2024, 16:00:00", T_MS),
    ("JavaScript Intl, British, full", "Thursday, 6 June 2024 at 16:00:00 UTC", T_MS),
    ("asctime and a zone", "Thu Jun  6 16:00:00 2024 UTC", T_MS),
    ("XML Schema date", "2024-06-06+02:00", T_MS - 18 * 3_600_000),
    ("XML Schema date, west", "2024-06-06-05:00", T_MS - 11 * 3_600_000),
    ("XML Schema date in UTC", "2024-06-06Z", T_MS - 16 * 3_600_000),
    ("basic date and an offset or an hour", "20240606-0500", RECEIPT),
    ("a day and an offset or an hour", "2024-06-06-05", RECEIPT),
    ("Java pattern yyyy-MM-ddX", "2024-06-06+05", RECEIPT),
    ("minute 60", "2024-06-06T16:60:00Z", RECEIPT),
    ("second 60 within a day", "2024-06-06T12:30:60Z", RECEIPT),
    ("a leap second, not in UTC", "2017-01-01T00:59:60+01:00", 1483228800000),
    ("blanks around", " 2024-06-06T16:00:00Z\n", T_MS),
    ("a day", "2024-06-06", T_MS - 16 * 3_600_000),
    ("a leap second", "2016-12-31T23:59:60Z", 1483228800000),
    ("nine digits are an epoch", "171806077", RECEIPT),  # `datetime` reads 1718-06-07
    ("epoch 0", 0, RECEIPT),
    ("no date", "soon", RECEIPT),
    ("an object", {"$date": 1}, RECEIPT),
]


@pytest.mark.parametrize(("sent", "date_ms"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_date_of_each_language_is_read_or_reported(sent: object, date_ms: int | None):
    mapped = map_one(track(timestamp=sent))
    assert body_of(mapped)["date"] == (RECEIVED_MS if date_ms is None else date_ms)
    assert ("date" in changes_by_field(mapped)) == (date_ms is None)


@pytest.mark.parametrize("form", ['"{}"', "     {}", '" {} "', "{},0", "{}.0", "+{}"])
@pytest.mark.parametrize("digits", [171806071, 1717689600, 1718060711123, 1717689600123])
def test_an_epoch_in_quotes_or_behind_blanks_is_read_as_an_epoch(form: str, digits: int):
    """`datetime` reads 1718-06-07T11:23 from 1718060711123."""
    assert to_epoch_ms(form.format(digits)) == (digits if digits > 10**11 else digits * 1000)


@pytest.mark.parametrize("digits", range(171_000_000, 1_799_999_999, 37_123_457))
def test_text_of_nine_or_more_digits_is_an_epoch(digits: int):
    mapped = map_one(track(timestamp=str(digits)))
    plausible = 946_684_800 <= digits <= RECEIVED_MS / 1000 + 86_400
    assert body_of(mapped)["date"] == (digits * 1000 if plausible else RECEIVED_MS)


@pytest.mark.parametrize("clock_ms", [0, 300_000, 946_684_800_000, 1_500_000_000_000])
def test_clock_that_was_not_set_does_not_replace_a_timestamp(clock_ms: int):
    sent = mapper().map(track(timestamp=T_MS), NOTHING_KNOWN, property_key=KEY, received_ms=clock_ms)
    assert (body_of(sent)["date"], sent.changes) == (T_MS, ())


def test_receipt_by_a_clock_that_was_not_set_is_reported():
    mapped = mapper().map(track(), NOTHING_KNOWN, property_key=KEY, received_ms=300_000)
    assert body_of(mapped)["date"] == 1_577_836_800_000
    assert "was not set" in changes_by_field(mapped)["date"]


LATER_MS = RECEIVED_MS + 400 * DAY_MS


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"timestamp": T_MS},
        {"originalTimestamp": T_MS},
        {"timestamp": "soon"},
        {"timestamp": "soon", "originalTimestamp": T_MS},
        {"timestamp": "soon", "originalTimestamp": "never"},
        {"timestamp": 171768960},
        {"timestamp": 0, "originalTimestamp": T_MS},
        {"timestamp": RECEIVED_MS + 3 * DAY_MS},
        {"originalTimestamp": RECEIVED_MS + 3 * DAY_MS},
        {"timestamp": "", "originalTimestamp": 0},
    ],
)
@pytest.mark.parametrize(
    "toml", ["", '[mapping.fields]\ndate = ["properties.when", "timestamp", "originalTimestamp"]\n']
)
def test_event_that_is_received_again_later_keeps_its_date(sent: dict, toml: str):
    """An import or a resend dated events without a plausible date by the time of the import."""
    compiled = mapper(toml)
    first = compiled.map(track(**sent), NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS)
    kept = compiled.keep_date(track(**sent), RECEIVED_MS)
    again = compiled.map(kept, NOTHING_KNOWN, property_key=KEY, received_ms=LATER_MS)
    assert again.intents == first.intents
    assert (kept == track(**sent)) is (body_of(first)["date"] == T_MS)


def test_date_of_the_apps_own_data_is_not_written():
    toml = '[mapping.fields]\ndate = ["properties.when", "timestamp"]\n'
    zero = track(properties={"when": 0})
    assert mapper(toml).keep_date(zero, RECEIVED_MS) == zero


def test_a_leap_second_is_the_first_moment_of_the_next_day():
    """https://www.iers.org: the last one was the end of 2016. Anywhere else 60 is a mistake."""
    assert to_epoch_ms("2016-12-31T23:59:60Z") == 1_483_228_800_000
    assert to_epoch_ms("2016-12-31T12:00:60Z") is None


@pytest.mark.parametrize("text", ["2024/6/6 16:00:00", "2024/6/6 16:00:00Z", "+002024-06-06T16:00:00Z"])
def test_a_year_first_is_read_without_zeros(text: str):
    assert to_epoch_ms(text) == T_MS


@pytest.mark.parametrize("text", ["2024/6/6", "2024-6-6"])
def test_a_day_without_zeros_is_read(text: str):
    assert to_epoch_ms(text) == T_MS - 16 * HOUR_MS


def test_a_day_in_basic_form_is_read_with_z_alone():
    assert to_epoch_ms("20240606Z") == T_MS - 16 * HOUR_MS
    assert to_epoch_ms("20240606-0500") is None  # an offset, or five o'clock


@pytest.mark.parametrize(
    ("names", "hours"),
    [
        ("UTC GMT UT Z WET", 0),
        ("EDT", -4),
        ("EST CDT", -5),
        ("CST MDT", -6),
        ("MST PDT", -7),
        ("PST", -8),
        ("HST", -10),
        ("WEST CET", 1),
        ("CEST EET", 2),
        ("EEST", 3),
        ("JST", 9),
        ("AEST", 10),
        ("AEDT", 11),
        ("NZST", 12),
        ("NZDT", 13),
    ],
)
def test_the_name_of_a_zone_is_its_offset(names: str, hours: int):
    """RFC 5322 section 4.3 for North America, https://www.iana.org/time-zones for the others."""
    for name in names.split():
        assert to_epoch_ms(f"2024-06-06 12:00:00 {name}") == T_MS - 4 * HOUR_MS - hours * HOUR_MS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-06-06 18:00:00 GMT +0200", 1_717_689_600_000),
        ("2024-06-06 18:00:00 UTC +02", 1_717_689_600_000),
        ("2024-06-06T18:00:00+05:75", None),
        ("2024-06-06T18:00:00+0260", None),
        ("Thu, 06 Jun 2024 16:00:00 +0299", None),
    ],
)
def test_an_offset_is_read_as_it_is_or_not_at_all(text: str, expected: int | None):
    assert to_epoch_ms(text) == expected


def test_a_year_of_two_digits_is_that_of_rfc_5322():
    assert to_epoch_ms("06 Jun 49 10:00 GMT") == 2_506_586_400_000
    assert to_epoch_ms("06 Jun 50 10:00 GMT") == -617_637_600_000
