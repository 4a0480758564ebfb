"""A short error of PX is one episode: everything offered meanwhile is delivered soon after it, once and below the ceiling."""

import pytest
import trio
from delivery_harness import CEILING, CREATED, ScriptedPx, delivering, most_in_a_second, new_event, number_of

from sidecar.px import NotSent, PxAnswer

OFFERED_PER_S, OFFERED_S = 150, 20
ERROR_S = (5, 10)
DONE_S = 28  # 18 s after the error

ERRORS = {
    "429": PxAnswer(429),
    "429 with Retry-After": PxAnswer(429, b"", "1"),
    "503": PxAnswer(503),
    "503 with Retry-After": PxAnswer(503, b"", "1"),
    "500": PxAnswer(500),
    "refused connections": NotSent("connect error: connection refused"),
}


AT_ONCE = {"429 with Retry-After", "refused connections"}  # the others take as long and belong to the stage whole


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in AT_ONCE else pytest.mark.whole) for name in ERRORS]
)
async def test_all_is_delivered_18_s_after_a_short_error(name, tmp_path, autojump_clock):
    began_s = trio.current_time()

    def answer(_event, _px):
        return ERRORS[name] if ERROR_S[0] <= trio.current_time() - began_s < ERROR_S[1] else CREATED

    px = ScriptedPx(answer)
    async with delivering(tmp_path, px) as daemon:
        for tick in range(OFFERED_S * 10):
            each = OFFERED_PER_S // 10
            events = [new_event(tick * each + number, f"user-{number % 40}") for number in range(each)]
            await daemon.outbox.accept(events)
            await trio.sleep_until(began_s + (tick + 1) / 10)
        await trio.sleep_until(began_s + DONE_S)
        assert len(px.stored) == OFFERED_PER_S * OFFERED_S
        assert len({number_of(event) for event in px.stored}) == len(px.stored), "none twice"
    assert most_in_a_second(px.requests_s) <= CEILING
