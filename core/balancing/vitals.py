"""Whether a backend may be used, by what probes and requests tell: a state machine without clock, thread or socket.

    new ───── first probe ─────> up | down | loading
    up ────── FALL probes fail in a row ──> down          up ── it says itself that it is not ready ──> loading
    up ────── a request can't connect, or is broken off ──> suspect: not used, and probed at once
    suspect ─ one good probe ──> up;  FALL failed ones ──> down
    any ───── it says itself that it is wedged ──> down
    down ──── RISE good probes in a row ──> up            loading ── one good probe ──> up

Busy is not dead: a probe that times out while the backend's streams flow does not count.

A backend that passes its probes and still fails requests is ejected: after EJECT_AFTER failures in a row, for 30 s,
twice as long each time, 300 s at most. Then it is on trial: one request is let through, and its outcome decides. A
backend that comes back after being down or ejected starts slowly: its share of the requests grows to the whole over
`slow_start` seconds.
"""

FALL = 3
RISE = 2
EJECT_AFTER = 5
FIRST_EJECTION, LONGEST_EJECTION = 30.0, 300.0  # seconds
FIRST_RETRY = 1.0  # seconds until a backend that failed its probe is probed again
SLOWEST_RETRY = 5.0  # seconds, after backing off
BACK_OFF = 1.3
RISE_DELAY = 0.5  # seconds between the probes that it must pass to come up again
LEAST_SHARE = 0.1  # of its requests: a backend that starts slowly begins with it
TROUBLE_SECONDS = 5.0  # in which a failure's weight falls by half

NEW, UP, SUSPECT, DOWN, LOADING = "new", "up", "suspect", "down", "loading"


class Vitals:
    """One backend's health. Moments are seconds on the caller's clock."""

    def __init__(self, slow_start: float = 0.0):
        self.state = NEW
        self.up = False  # it may be used, as far as probes and connections tell: the state is UP
        self.why = "not probed yet"
        self.seen = False  # it has been up once, or says that it is loading
        self.ejections = 0  # in all
        self.down_since = float("-inf")
        self._slow_start = slow_start
        self.slow = False  # it starts slowly, as far as was looked
        self._slow_until = float("-inf")
        self._bad_probes = 0  # in a row
        self._good_probes = 0
        self._retry_delay = FIRST_RETRY
        self._failures = 0  # in a row, of requests
        self._ejected_until = float("-inf")
        self._ejection = FIRST_EJECTION
        self.on_trial = False  # it is or was ejected; after that, the next request's outcome decides
        self._trial_runs = False
        self.troubled = False  # a request has failed there
        self._trouble = 0.0
        self._trouble_at = 0.0

    # ---- what follows from it

    def out(self, now: float) -> bool:
        """Whether it is ejected, or its trial is under way."""
        return now < self._ejected_until or (self.on_trial and self._trial_runs)

    def label(self, now: float) -> str:
        """Return its state in a word."""
        return "ejected" if self.up and self.on_trial else self.state

    def share(self, now: float) -> float:
        """Return what part of its requests it gets: less than 1 while it starts slowly."""
        if now >= self._slow_until:
            self.slow = False
            return 1.0
        return max(LEAST_SHARE, 1.0 - (self._slow_until - now) / self._slow_start)

    def trouble(self, now: float) -> float:
        """Return how many failures count against it; a failure of five seconds ago counts half."""
        return self._trouble * 0.5 ** ((now - self._trouble_at) / TROUBLE_SECONDS)

    def next_probe(self, interval: float) -> float:
        """Return the seconds until the next probe, after one has ended."""
        if self._good_probes and not self.up:
            return RISE_DELAY
        if self.up and not self._bad_probes:
            self._retry_delay = FIRST_RETRY
            return interval
        delay, self._retry_delay = self._retry_delay, min(self._retry_delay * BACK_OFF, SLOWEST_RETRY)
        return delay

    # ---- what probes tell

    def probe_passed(self, now: float) -> None:
        """It answered: it is up, or needs one more good probe where it has been down."""
        self._bad_probes = 0
        self._good_probes += 1
        if self.state == DOWN and self._good_probes < RISE and self.seen:
            self.why = "answers again"
            return
        if self.state == DOWN and self.seen:
            self._start_slowly(now)
        self._become(UP)
        self.why, self.seen = "ok", True

    def probe_failed(self, now: float, why: str) -> None:
        """It did not answer, or not well."""
        self._good_probes = 0
        self._bad_probes += 1
        self.why = why
        if self.state == NEW or self._bad_probes >= FALL:
            self._leave(now, DOWN)

    def not_ready(self, now: float, why: str) -> None:
        """It answered that it is not ready: it is loading, or stopping."""
        self._good_probes = self._bad_probes = 0
        self.why, self.seen = why, True
        self._leave(now, LOADING)

    def wedged(self, now: float, why: str) -> None:
        """It answered that it is stuck: it is down at once, and requests there wait no longer."""
        self._good_probes = 0
        self.why, self.seen = why, True
        self._leave(now, DOWN)

    def busy(self, why: str) -> None:
        """The probe timed out, but its streams flow."""
        self._bad_probes = 0
        self.why = why

    # ---- what requests tell

    def request_starts(self) -> None:
        """A request goes to it. Where it is on trial, this request decides."""
        self._trial_runs = self.on_trial

    def request_ends(self) -> None:
        """A request has left it. A trial without an outcome is held again."""
        self._trial_runs = False

    def request_passed(self, now: float) -> None:
        """A request was answered."""
        self._failures = 0
        if self.on_trial and now >= self._ejected_until:
            self.on_trial = self._trial_runs = False
            self._ejection = FIRST_EJECTION
            self._start_slowly(now)

    def request_failed(self, now: float, why: str, lost: bool) -> bool:
        """A request failed. Where its connection was `lost`, the backend is suspect. Returns whether it is ejected.

        What is lost with a backend, or tried at one that is gone, is no failure more: it says nothing of what follows.
        """
        gone = lost and self.state not in (UP, LOADING)
        if lost:
            self.why = why
            self._good_probes = 0
            if not gone:
                self._leave(now, SUSPECT)
        return not gone and self._counts_against_it(now)

    def _counts_against_it(self, now: float) -> bool:
        """Count a failure. Returns whether the backend is ejected for it."""
        self._trouble, self._trouble_at, self.troubled = self.trouble(now) + 1.0, now, True
        self._failures += 1
        if now < self._ejected_until or not (self.on_trial or self._failures >= EJECT_AFTER):
            return False
        self._ejected_until = now + self._ejection
        self._ejection = min(self._ejection * 2, LONGEST_EJECTION)
        self.on_trial, self._trial_runs = True, False
        self.ejections += 1
        self._failures = 0
        return True

    def _leave(self, now: float, state: str) -> None:
        if self.state in (UP, NEW):
            self.down_since = now
        self._become(state)

    def _become(self, state: str) -> None:
        self.state, self.up = state, state == UP

    def _start_slowly(self, now: float) -> None:
        self._slow_until = now + self._slow_start
        self.slow = True
