"""The properties of ``fuzz.py``, over examples of hypothesis and in a short coverage-guided search."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

FUZZER = Path(fuzz.__file__)
RUNS = 20_000

pieces = st.lists(
    st.binary(max_size=6)
    | st.sampled_from(
        [
            *(
                b'{"type":"track",',
                b'"event":"e"',
                b',"userId":',
                b"}",
                b"[",
                b"]",
                b",",
                b'{"batch":[',
                b'"\\ud800"',
                b"NaN",
            ),
            *(
                b"\n",
                b"\r\n",
                b"POST /v1/track HTTP/1.1\r\n",
                b"Host: x\r\n",
                b"Content-Length: 5\r\n",
                b"1e400",
                b"null",
            ),
            *(
                b"Transfer-Encoding: chunked\r\n\r\n",
                b"5\r\n",
                b"0\r\n\r\n",
                b"GET / HTTP/1.0\r\n\r\n",
                b'"messageId":"m"',
            ),
        ]
    ),
    max_size=30,
).map(b"".join)


@given(st.sampled_from([0, 1, 2]), pieces)
@example(0, b'{"batch":[{"type":"track","event":"\\ud800","userId":1e999}]}')
def test_any_bytes_are_answered_and_stored_as_strict_json(which: int, data: bytes):
    fuzz.check(bytes([which]) + data)


@pytest.mark.parametrize("seed", fuzz.SEEDS)
def test_every_prefix_of_a_seed_holds_the_properties(seed: bytes):
    for end in range(len(seed) + 1):
        fuzz.check(seed[:end])


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install '.[fuzz]'"
)
def test_short_coverage_guided_search_finds_nothing(tmp_path: Path):
    command = [sys.executable, str(FUZZER), str(tmp_path), f"-runs={RUNS}", "-max_len=400", "-timeout=20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr
    assert {(tmp_path / f"seed-{number}").read_bytes() for number in range(len(fuzz.SEEDS))} == set(fuzz.SEEDS)
