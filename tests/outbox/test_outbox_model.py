"""Random operations on a real outbox file against a model of a few lines.

Short in CI; ``--hypothesis-profile=long`` goes on for as long as it is told to.
"""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from outbox_files import IN_MEMORY, NOW_MS, check_account, copied, dead, delivered, dropped, event, undone

from sidecar.outbox import Failure, Keeper, Remembered, Store, ids
from sidecar.outbox.dead import Which, discard, retry
from sidecar.outbox.forget import forget_users
from sidecar.outbox.ids import MessageIds
from sidecar.outbox.overflow import Overflow

SLICES = (ids.SLICE, ids.SLICE_PER_ID)
KEEP_MS = 100_000
NUMBERS = st.integers(0, 40)
USERS = st.sampled_from(["u1", "u2", None])
PENDING = ("pending", "aside")


class Known:
    """What the model knows of one event."""

    def __init__(self, number, user, high, state):
        self.number, self.user, self.high, self.state = number, user, high, state
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
        self.keeper = Keeper(delivered_ms=KEEP_MS, ids_ms=KEEP_MS, dead_ms=4 * KEEP_MS, max_users=2)
        self.overflow = Overflow()
        self.events = {}  # event id -> Known, as long as its row is there
        self.ids = {}  # number -> event id and when it was seen
        self.counted = Counter()
        self.next_id = 1

    @initialize(newest=st.integers(1, 12), of_each_commit=st.sampled_from([(1, 0), (2, 1), (500, 4)]))
    def small_batches(self, newest, of_each_commit):
        self.newest = newest
        ids.SLICE, ids.SLICE_PER_ID = of_each_commit
        self.store.ids = MessageIds(self.store.connection, newest=newest)

    def of(self, *states):
        return sorted(one for one, known in self.events.items() if known.state in states)

    def pick(self, data, *states):
        return data.draw(st.lists(st.sampled_from(self.of(*states)), unique=True, max_size=6))

    # Accepting and settling -----------------------------------------------------------------------------------

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=8), user=USERS, high=st.booleans(), bad=st.booleans())
    def accept(self, numbers, user, high, bad):
        with self.store.transaction():
            sent = [event(n, user=user, high=high, bad="bad" if bad else None) for n in numbers]
            answer = self.store.accept([sent], self.now_ms)[0]
        fresh = [number for number in dict.fromkeys(numbers) if number not in self.ids]
        # What is old enough may have been forgotten already: the answer decides, within what is allowed.
        maybe = [n for n in dict.fromkeys(numbers) if n not in fresh and self.may_be_forgotten(n)]
        assert len(fresh) <= answer.stored <= len(fresh) + len(maybe)
        assert answer.repeated == len(numbers) - answer.stored
        rows = self.store.connection.execute(
            "SELECT id, body FROM events WHERE id >= ? ORDER BY id", (self.next_id,)
        ).fetchall()
        assert [one for one, _ in rows] == list(range(self.next_id, self.next_id + answer.stored))
        for event_id, body in rows:
            number = int(body.split(b'"')[3][1:])
            assert number in fresh or number in maybe
            self.events[event_id] = Known(number, user, high, "dead" if bad else "pending")
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
        made = [how(one, high=self.events[one].high) for one in chosen]
        if how is delivered and chosen and self.events[chosen[0]].user:
            user = self.events[chosen[0]].user
            made[0] = delivered(chosen[0], high=self.events[chosen[0]].high, remember=Remembered("AP", user, b"x"))
        with self.store.transaction():
            self.store.settle(made * (2 if again else 1), self.now_ms)
        for one in chosen:
            self.events[one].state = how.__name__
            self.events[one].settled_ms = self.now_ms
            self.events[one].failed = False

    @precondition(lambda self: self.of(*PENDING))
    @rule(data=st.data())
    def fail(self, data):
        chosen = self.pick(data, *PENDING)
        with self.store.transaction():
            self.store.note_failures([Failure(one, 1, self.now_ms, self.now_ms, 1, 0, "503") for one in chosen])
        for one in chosen:
            self.events[one].failed = True

    @precondition(lambda self: self.of("pending"))
    @rule(data=st.data())
    def set_aside(self, data):
        chosen = self.pick(data, "pending")
        with self.store.transaction():
            self.store.set_aside(chosen)
        for one in chosen:
            if self.events[one].user is not None:
                self.events[one].state = "aside"

    # Operators --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.of("dead"))
    @rule(data=st.data(), high=st.booleans())
    def retry_dead(self, data, high):
        chosen = self.pick(data, "dead")
        with self.store.transaction():
            moved = retry(self.store, Which(ids=chosen), self.now_ms, high=lambda _event: high)
        assert moved.ids == sorted(chosen)
        for one in chosen:
            self.events[one].state, self.events[one].high, self.events[one].settled_ms = "pending", high, None

    @precondition(lambda self: self.of("dead"))
    @rule(data=st.data())
    def discard_dead(self, data):
        chosen = self.pick(data, "dead")
        with self.store.transaction():
            assert discard(self.store, Which(ids=chosen), self.now_ms).ids == sorted(chosen)
        for one in chosen:
            self.events[one].state, self.events[one].settled_ms = "dropped", self.now_ms

    @rule(data=st.data())
    def forget(self, data):
        in_use = set(self.pick(data, *PENDING)) if self.of(*PENDING) else set()
        with self.store.transaction():
            left = forget_users(self.store, ["u2"], self.now_ms, in_use=in_use).left
        theirs = [one for one, known in self.events.items() if known.user == "u2"]
        assert sorted(left) == sorted(one for one in theirs if one in in_use)
        for one in set(theirs) - in_use:
            if self.events[one].state in (*PENDING, "dead"):
                known = self.events[one]
                known.state, known.settled_ms, known.user, known.failed = "dropped", self.now_ms, None, False
            else:
                del self.events[one]

    @rule(data=st.data(), pending_too=st.booleans())
    def make_room(self, data, pending_too):
        protected = set(self.pick(data, *PENDING)) if self.of(*PENDING) else set()
        with self.store.transaction():
            self.overflow.make_room(self.store, 1, protected if pending_too else None)
        left = {row[0] for row in self.store.connection.execute("SELECT id FROM events")}
        for one in set(self.events) - left:
            state = self.events.pop(one).state
            assert state in ("delivered", "dropped") or (pending_too and state in PENDING and one not in protected)

    # Time and accidents -----------------------------------------------------------------------------------------

    @rule(step_ms=st.sampled_from([0, 1000, 30_000, KEEP_MS, 5 * KEEP_MS]), hurry=st.booleans())
    def keep_house(self, step_ms, hurry):
        self.now_ms += step_ms
        with self.store.transaction():
            self.keeper.step(self.store, self.now_ms, hurry=hurry)
        self.store.tidy()
        for one, known in list(self.events.items()):
            due = known.settled_ms is not None and known.settled_ms < self.now_ms - KEEP_MS
            if known.state in ("delivered", "dropped") and (due or hurry):
                del self.events[one]
            elif known.state == "dead" and known.settled_ms < self.now_ms - 4 * KEEP_MS:
                known.state, known.settled_ms = "dropped", self.now_ms

    @rule()
    def restart(self):
        self.store.close()
        self.store = Store(self.path, durability="process")
        self.small_batches_again()

    @rule()
    def reopen(self):
        self.store.reopen()
        self.small_batches_again()

    @rule()
    def crash(self):
        self.crashes += 1
        self.path = copied(self.path, Path(self.folder.name) / str(self.crashes))
        self.store.connection.close()
        self.store = Store(self.path, durability="process")
        self.small_batches_again()

    def small_batches_again(self):
        self.store.ids._newest_max = self.newest

    @precondition(lambda self: self.of("pending"))
    @rule()
    def undone(self):
        with undone(self.store):
            self.store.settle([delivered(self.of("pending")[0])], self.now_ms)
            self.store.accept([[event("undone")]], self.now_ms)
            self.store.flush_ids(all_of_them=True)

    # What always holds ------------------------------------------------------------------------------------------

    @invariant()
    def the_account_is_exact(self):
        check_account(self.store)
        assert self.store.counters["accepted"] == self.counted["accepted"] == self.next_id - 1

    @invariant()
    def nothing_is_lost_and_pages_are_in_order(self):
        for high in (False, True):
            rows, after_id = [], 0
            while (page := self.store.page(high=high, after_id=after_id, limit=3)).rows:
                rows += page.rows
                after_id = page.rows[-1].id
            expected = [one for one in self.of("pending") if self.events[one].high == high]
            assert [row.id for row in rows] == expected
            for row in rows:
                assert (row.failure is not None) == self.events[row.id].failed
            aside = [one for one in self.of("aside") if self.events[one].high == high]
            users = self.store.users_aside(high=high)
            assert users == sorted({self.events[one].user for one in aside})
            found = [
                row.id
                for user in users
                for row in self.store.aside_page(high=high, user=user, after_id=0, limit=99).rows
            ]
            assert sorted(found) == aside

    @invariant()
    def every_row_is_in_the_state_it_should_be(self):
        states = {0: "pending", 1: "pending", 2: "aside", 3: "aside", 4: "delivered", 5: "dropped", 6: "dead"}
        rows = self.store.connection.execute("SELECT id, state FROM events")
        assert {one: states[state] for one, state in rows} == {one: known.state for one, known in self.events.items()}

    def teardown(self):
        self.store.close()
        self.folder.cleanup()
        ids.SLICE, ids.SLICE_PER_ID = SLICES


TestOutboxModel = OutboxMachine.TestCase
TestOutboxModel.settings = settings(
    stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
