"""Masked text of a configuration: no secret in it, and the same text again once they are put back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import as_toml, effective, load_text, mask_secrets, restore_secrets, without_secrets
from sidecar.control.reload import changes_between
from sidecar.errors import ConfigError

TEXT = """[px]
api_key = "key-1"  # "quoted" comment
proxy = "http://user:pass@proxy:3128"
[[source]]
"write_key" = 'key-2'
[mapping.attributes]
hash_salt = \"\"\"
key-3\"\"\"
# write_key = "key-4"
other_write_key = "visible"
"""


def test_every_secret_is_masked_and_restored():
    masked, secrets = mask_secrets(TEXT)
    assert "key-" not in masked
    assert "user:pass" not in masked
    assert "visible" in masked
    assert len(secrets) == 5
    assert restore_secrets(masked, TEXT) == TEXT


def test_the_text_for_display_hides_credentials_in_urls():
    assert "user:pass" not in without_secrets(TEXT)


@pytest.mark.parametrize("line", ['proxy = "u:PASS@h:1"', "proxy = 'u:PA/SS@h'", '"proxy"="PASS@h"'])
def test_the_password_of_a_proxy_without_its_scheme_is_hidden(line):
    """A start refuses it; until the file is corrected, `config show`, `reload` and the console show that file."""
    text = f"[px]\n{line}\n"
    masked, secrets = mask_secrets(text)
    assert len(secrets) == 1
    assert "SS" not in masked
    assert restore_secrets(masked, text) == text
    assert "SS" not in as_toml(load_text(text))
    assert all("SS" not in str(change) for change in changes_between(load_text(""), load_text(text)))


@pytest.mark.parametrize("address", ["", "http://h:1", "h:1"])
def test_the_address_of_a_proxy_without_credentials_is_shown(address):
    text = f'[px]\nproxy = "{address}"\n'
    assert mask_secrets(text) == (text, [])
    assert f'proxy = "{address}"' in as_toml(load_text(text))


def test_an_empty_secret_stays_empty():
    assert mask_secrets('api_key = ""\n') == ('api_key = ""\n', [])


@pytest.mark.parametrize("line", ['api_key = "" # none', "api_key = []", 'px = { api_key = "", region = "eu" }'])
def test_an_empty_value_hides_nothing_of_its_line(line):
    assert mask_secrets(f"{line}\n") == (f"{line}\n", [])


def test_what_follows_a_secret_in_its_table_is_shown():
    assert without_secrets('px = { api_key = "SECRET", region = "eu" }') == 'px = { api_key = "****1", region = "eu" }'


def test_an_unknown_placeholder_stays():
    assert restore_secrets('write_key = "****9"', "write_key = 'a'") == 'write_key = "****9"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[mapping.attributes]", '[mapping.attributes]\nset = { stolen = "****1" }'),
        ("[mapping.attributes]", '[mapping.attributes]\nset = { api_key = "****1" }'),
        ("[mapping.attributes]", "[mapping.attributes]\nset = { stolen = 'api_key = \"****1\"' }"),
        ("[mapping.attributes]", '[mapping.attributes]\nset = { stolen = "http://****5@x" }'),
        ("[mapping.attributes]", '[mapping.events]\n"****1" = "Seen"\n[mapping.attributes]'),
        ("[px]", '[px]\nregion = "****1"'),
    ],
)
def test_a_secret_is_not_restored_to_another_place(before, after):
    """A preview of the mapping showed it as what PX would get, an error as the value that is wrong."""
    masked, _ = mask_secrets(TEXT)
    with pytest.raises(ConfigError, match="placeholder"):
        restore_secrets(masked.replace(before, after, 1), TEXT)


def test_a_secret_stays_with_its_setting_in_an_edited_text():
    masked, _ = mask_secrets(TEXT)
    moved = masked.replace("[[source]]", '[[source]]\nwrite_key = "new"\n[[source]]').replace("3128", "3129")
    restored = restore_secrets(moved.replace("[mapping.attributes]", "[mapping.traits]"), TEXT)
    assert all(secret in restored for secret in ("key-1", "key-2", "key-3", "key-4", "user:pass@proxy:3129"))
    broken = TEXT + "region =\n"
    assert restore_secrets(mask_secrets(broken)[0].replace("region =", "# region ="), broken).startswith(TEXT)


def test_a_secret_is_not_restored_to_a_text_that_is_not_toml():
    """The rest of such a text is judged as well, and an error would quote the secret where it does not belong."""
    text = mask_secrets(TEXT)[0].replace("[px]", '[px]\nregion = "****1"\nbroken =')
    assert restore_secrets(text, TEXT) == text


@given(st.text(max_size=40).filter(lambda text: not any(char in text for char in '"\\\n\r')))
def test_masking_and_restoring_gives_the_same_text(secret):
    text = f'write_key = "{secret}"\nname = "x"\n'
    assert restore_secrets(mask_secrets(text)[0], text) == text


@pytest.mark.parametrize(
    "password", ["MARKED", "p@MARKED", "p/MARKED", "p#MARKED", "p MARKED", "p?MARKED", "p:MARKED", "p'MARKED"]
)
def test_the_password_of_a_proxy_is_masked_whatever_it_contains(password):
    """A password that is not percent-encoded was shown by `config show` from its first special character on."""
    config = load_text(f'[px]\nproxy = "http://user:{password}@proxy:3128"\n')
    for view in (
        as_toml(config),
        str(effective(config)),
        without_secrets(f'proxy = "http://user:{password}@proxy:3128"'),
        mask_secrets(f'proxy = "http://user:{password}@proxy:3128"')[0],
    ):
        assert "MARKED" not in view
        assert "proxy:3128" in view


@pytest.mark.parametrize(
    "line",
    [
        *(
            'api_key = "SECRET',
            "api_key = SECRET",
            'api_key = ["SECRET"]',
            "api_key = 'SECRET\\",
        ),
        *('api_key = "old" "SECRET"', "api_key = '' 'SECRET'", 'api_key = "" SECRET', 'api_key = ["a", "SECRET"]'),
        *('api-key = "SECRET"', 'API_KEY = "SECRET"', 'apikey="SECRET"', "Password = SECRET # the old one"),
    ],
)
def test_a_secret_in_a_line_that_is_wrong_is_masked(line):
    """The file is shown as well while it cannot be read: a missing quote showed the key to everybody who may look."""
    text = f'[px]\n{line}\nregion = "us"\n'
    assert "SECRET" not in without_secrets(text)
    assert 'region = "us"' in without_secrets(text)
    masked, _ = mask_secrets(text)
    assert restore_secrets(masked, text) == text
