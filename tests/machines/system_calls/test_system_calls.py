"""A sample of the faults of ``system_calls.py``: one system call fails, and nothing is lost or repeated."""

from collections import Counter

import pytest
from system_calls import FAULTS, can_trace, faults_of_a_day, try_fault

EVERY = 25


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace")
def test_a_failed_system_call_loses_and_repeats_nothing():
    faults = faults_of_a_day(EVERY)
    assert Counter(fault.call for fault in faults).keys() == FAULTS.keys(), "the day makes no call of some kind"
    for fault in faults:
        try:
            assert try_fault(fault), "the fault was not injected"
        except AssertionError as error:
            error.add_note(f"{fault}; all of them: python {__file__.replace('test_', '')}")
            raise
