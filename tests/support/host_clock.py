"""A host whose clocks go wrong: by seconds, hours, days, back to 1970, ahead to 2098."""

from sidecar.clock import RELEASED_MS

S, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
NOW_MS = RELEASED_MS + 400 * DAY + 5 * HOUR + 17 * MINUTE
IN_1970, IN_2098 = 5 * MINUTE - NOW_MS, 72 * 365 * DAY
JUMPS = [S, -S, HOUR, -HOUR, 2 * DAY, -2 * DAY, 40 * DAY, -40 * DAY, IN_1970, IN_2098]


class HostClock:
    """The clocks of a host: true time, with a wall clock that is wrong by ``error_ms``."""

    released_ms = RELEASED_MS

    def __init__(self, up_ms: int = 0) -> None:
        self.true_ms, self.error_ms = NOW_MS, 0
        self.booted_ms, self.boots = NOW_MS - up_ms, 1

    def monotonic_s(self) -> float:
        return self.boot_s() + 123.0

    def boot_s(self) -> float:
        return (self.true_ms - self.booted_ms) / 1000

    def wall_ms(self) -> int:
        return self.true_ms + self.error_ms

    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def reboot(self, off_ms: int = 30 * S) -> None:
        self.true_ms += off_ms
        self.booted_ms, self.boots = self.true_ms, self.boots + 1
