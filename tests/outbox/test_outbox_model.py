"""Random operations on a real outbox file, compared with a model of a few lines.

Short in CI; ``--hypothesis-profile=long`` runs many more examples.
"""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from outbox_files import IN_MEMORY, NOW_MS, check_counters, copied, dead, delivered, dropped, event, rolled_back

from sidecar.mapping import Priority
from sidecar.outbox import Failure, Remembered, Retention, Store, dedup
from sidecar.outbox.dead import DeadLetterFilter, discard, retry
from sidecar.outbox.dedup import DedupIndex
from sidecar.outbox.forget import forget_users
from sidecar.outbox.overflow import Overflow

SLICES = (dedup.SLICE, dedup.SLICE_PER_ID)
KEEP_MS = 100_000
NUMBERS = st.integers(0, 40)
USERS = st.sampled_from(["u1", "u2", None])
PENDING = ("pending", "parked")


class ModelEvent:
    """The state of event_id event in the model."""

    def __init__(self, number, user, high, state):
        self.number, self.user, self.priority, self.state = number, user, high, state
        self.failed = False
        self.settled_ms = None


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
        self.path = Path(self.folder.name) / "o.db"
        self.store = Store(self.path, durability="process")
        self.crashes = 0
        self.now_ms = NOW_MS
        self.retention = Retention(delivered_ms=KEEP_MS, ids_ms=KEEP_MS, dead_ms=4 * KEEP_MS, max_users=2)
        self.overflow = Overflow()
        self.events = {}  # event id → ModelEvent, while its row exists
        self.ids = {}  # number → event id and when it was seen
        self.counted = Counter()
        self.next_id = 1

    @initialize(newest=st.integers(1, 12), of_each_commit=st.sampled_from([(1, 0), (2, 1), (500, 4)]))
    def small_batches(self, newest, of_each_commit):
        self.newest = newest
        dedup.SLICE, dedup.SLICE_PER_ID = of_each_commit
        self.store.ids = DedupIndex(self.store.connection, newest=newest)

    def of(self, *states):
        return sorted(event_id for event_id, expected_event in self.events.items() if expected_event.state in states)

    def pick(self, data, *states):
        return data.draw(st.lists(st.sampled_from(self.of(*states)), unique=True, max_size=6))

    # Accepting and settling -----------------------------------------------------------------------------------

    @rule(
        numbers=st.lists(NUMBERS, min_size=1, max_size=8),
        user=USERS,
        priority=st.sampled_from(Priority),
        bad=st.booleans(),
    )
    def accept(self, numbers, user, priority, bad):
        with self.store.transaction():
            sent = [event(n, user=user, priority=priority, bad="bad" if bad else None) for n in numbers]
            answer = self.store.accept([sent], self.now_ms)[0]
        fresh = [number for number in dict.fromkeys(numbers) if number not in self.ids]
        # Old ids may have expired or not: the answer decides, within these limits.
        maybe = [n for n in dict.fromkeys(numbers) if n not in fresh and self.may_be_forgotten(n)]
        assert len(fresh) <= answer.stored <= len(fresh) + len(maybe)
        assert answer.repeated == len(numbers) - answer.stored
        rows = self.store.connection.execute(
            "SELECT id, body FROM events WHERE id >= ? ORDER BY id", (self.next_id,)
        ).fetchall()
        assert [event_id for event_id, _ in rows] == list(range(self.next_id, self.next_id + answer.stored))
        for event_id, body in rows:
            number = int(body.split(b'"')[3][1:])
            assert number in fresh or number in maybe
            self.events[event_id] = ModelEvent(number, user, priority, "dead" if bad else "pending")
            self.events[event_id].settled_ms = self.now_ms if bad else None
            self.ids[number] = (event_id, self.now_ms)
        self.next_id += answer.stored
        self.counted["accepted"] += answer.stored

    def may_be_forgotten(self, number):
        event_id, seen_ms = self.ids[number]
        live = event_id in self.events and self.events[event_id].state in (*PENDING, "dead")
        return not live and seen_ms < self.now_ms - KEEP_MS

    @precondition(lambda self: self.of(*PENDING))
    @rule(data=st.data(), how=st.sampled_from([delivered, dropped, dead]), again=st.booleans())
    def settle(self, data, how, again):
        chosen = self.pick(data, *PENDING)
        settlements = [how(event_id, priority=self.events[event_id].priority) for event_id in chosen]
        if how is delivered and chosen and self.events[chosen[0]].user:
            user = self.events[chosen[0]].user
            settlements[0] = delivered(
                chosen[0], priority=self.events[chosen[0]].priority, remember=Remembered("AP", user, b"x")
            )
        with self.store.transaction():
            self.store.settle(settlements * (2 if again else 1), self.now_ms)
        for event_id in chosen:
            self.events[event_id].state = how.__name__
            self.events[event_id].settled_ms = self.now_ms
            self.events[event_id].failed = False

    @precondition(lambda self: self.of(*PENDING))
    @rule(data=st.data())
    def fail(self, data):
        chosen = self.pick(data, *PENDING)
        with self.store.transaction():
            self.store.record_failures(
                [Failure(event_id, 1, self.now_ms, self.now_ms, 1, 0, "503") for event_id in chosen]
            )
        for event_id in chosen:
            self.events[event_id].failed = True

    @precondition(lambda self: self.of("pending"))
    @rule(data=st.data())
    def park(self, data):
        chosen = self.pick(data, "pending")
        with self.store.transaction():
            self.store.park(chosen)
        for event_id in chosen:
            if self.events[event_id].user is not None:
                self.events[event_id].state = "parked"

    # Operators --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.of("dead"))
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def retry_dead(self, data, priority):
        chosen = self.pick(data, "dead")
        with self.store.transaction():
            moved = retry(self.store, DeadLetterFilter(ids=chosen), self.now_ms, priority_of=lambda _event: priority)
        assert moved.ids == sorted(chosen)
        for event_id in chosen:
            expected_event = self.events[event_id]
            expected_event.state, expected_event.priority, expected_event.settled_ms = "pending", priority, None

    @precondition(lambda self: self.of("dead"))
    @rule(data=st.data())
    def discard_dead(self, data):
        chosen = self.pick(data, "dead")
        with self.store.transaction():
            assert discard(self.store, DeadLetterFilter(ids=chosen), self.now_ms).ids == sorted(chosen)
        for event_id in chosen:
            self.events[event_id].state, self.events[event_id].settled_ms = "dropped", self.now_ms

    @rule(data=st.data())
    def forget(self, data):
        checked_out = set(self.pick(data, *PENDING)) if self.of(*PENDING) else set()
        with self.store.transaction():
            skipped = forget_users(self.store, ["u2"], self.now_ms, checked_out=checked_out).skipped
        of_user = [event_id for event_id, expected_event in self.events.items() if expected_event.user == "u2"]
        assert sorted(skipped) == sorted(event_id for event_id in of_user if event_id in checked_out)
        for event_id in set(of_user) - checked_out:
            if self.events[event_id].state in (*PENDING, "dead"):
                expected_event = self.events[event_id]
                expected_event.state, expected_event.settled_ms = "dropped", self.now_ms
                expected_event.user, expected_event.failed = None, False
            else:
                del self.events[event_id]

    @rule(data=st.data(), pending_too=st.booleans())
    def free_space(self, data, pending_too):
        protected = set(self.pick(data, *PENDING)) if self.of(*PENDING) else set()
        with self.store.transaction():
            self.overflow.free_space(self.store, 1, protected if pending_too else None)
        left = {row[0] for row in self.store.connection.execute("SELECT id FROM events")}
        for event_id in set(self.events) - left:
            state = self.events.pop(event_id).state
            assert state in ("delivered", "dropped") or (pending_too and state in PENDING and event_id not in protected)

    # Time and crashes -------------------------------------------------------------------------------------------

    @rule(step_ms=st.sampled_from([0, 1000, 30_000, KEEP_MS, 5 * KEEP_MS]), hurry=st.booleans())
    def housekeeping(self, step_ms, hurry):
        self.now_ms += step_ms
        with self.store.transaction():
            self.retention.prune_step(self.store, self.now_ms, hurry=hurry)
        self.store.vacuum()
        for event_id, expected_event in list(self.events.items()):
            due = expected_event.settled_ms is not None and expected_event.settled_ms < self.now_ms - KEEP_MS
            if expected_event.state in ("delivered", "dropped") and (due or hurry):
                del self.events[event_id]
            elif expected_event.state == "dead" and expected_event.settled_ms < self.now_ms - 4 * KEEP_MS:
                expected_event.state, expected_event.settled_ms = "dropped", self.now_ms

    @rule()
    def restart(self):
        self.store.close()
        self.store = Store(self.path, durability="process")
        self.restore_batch_size()

    @rule()
    def reopen(self):
        self.store.reopen()
        self.restore_batch_size()

    @rule()
    def crash(self):
        self.crashes += 1
        self.path = copied(self.path, Path(self.folder.name) / str(self.crashes))
        self.store.connection.close()
        self.store = Store(self.path, durability="process")
        self.restore_batch_size()

    def restore_batch_size(self):
        self.store.ids.newest_max = self.newest

    @precondition(lambda self: self.of("pending"))
    @rule()
    def rolled_back(self):
        with rolled_back(self.store):
            self.store.settle([delivered(self.of("pending")[0])], self.now_ms)
            self.store.accept([[event("rolled_back")]], self.now_ms)
            self.store.flush_ids(everything=True)

    # Invariants -------------------------------------------------------------------------------------------------

    @invariant()
    def the_counters_are_exact(self):
        check_counters(self.store)
        assert self.store.counters["accepted"] == self.counted["accepted"] == self.next_id - 1

    @invariant()
    def nothing_is_lost_and_pages_are_in_order(self):
        for priority in Priority:
            rows, after_id = [], 0
            while (page := self.store.page(priority=priority, after_id=after_id, limit=3)).rows:
                rows += page.rows
                after_id = page.rows[-1].id
            expected = [event_id for event_id in self.of("pending") if self.events[event_id].priority == priority]
            assert [row.id for row in rows] == expected
            for row in rows:
                assert (row.failure is not None) == self.events[row.id].failed
            parked = [event_id for event_id in self.of("parked") if self.events[event_id].priority == priority]
            users = self.store.parked_users(priority=priority)
            assert users == sorted({self.events[event_id].user for event_id in parked})
            found_ids = [
                row.id
                for user in users
                for row in self.store.parked_page(priority=priority, user=user, after_id=0, limit=99).rows
            ]
            assert sorted(found_ids) == parked

    @invariant()
    def every_row_is_in_its_state(self):
        states = dict.fromkeys((-1, 0, 1), "pending") | dict.fromkeys((-2, 2, 3), "parked")
        states |= {4: "delivered", 5: "dropped", 6: "dead"}
        rows = self.store.connection.execute("SELECT id, state FROM events")
        assert {event_id: states[state] for event_id, state in rows} == {
            event_id: expected_event.state for event_id, expected_event in self.events.items()
        }

    def teardown(self):
        self.store.close()
        self.folder.cleanup()
        dedup.SLICE, dedup.SLICE_PER_ID = SLICES


TestOutboxModel = OutboxMachine.TestCase
TestOutboxModel.settings = settings(
    stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
