"""A sample of the faults of ``system_calls.py``: the n-th write, sync or read of the system fails, and nothing is lost."""

from collections import Counter

import pytest
from system_calls import FAULTS, can_trace, faults_of_a_day, try_fault

ONE_IN = 25


@pytest.mark.skipif(not can_trace(), reason="strace is not there, or may not trace")
def test_no_failed_call_of_the_system_loses_or_doubles_anything():
    faults = faults_of_a_day(ONE_IN)
    assert Counter(fault.call for fault in faults).keys() == FAULTS.keys(), "a kind of call that the day does not make"
    for fault in faults:
        try:
            assert try_fault(fault), "the call was not made"
        except AssertionError as error:
            error.add_note(f"{fault}; all of them: python {__file__.replace('test_outbox_', '')}")
            raise
