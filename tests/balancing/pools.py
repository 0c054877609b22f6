"""Pools for tests: without sockets, with a clock that stands still, and with all who change them at hand."""

from core.balancing.backends import Report
from core.balancing.membership import Membership
from core.balancing.policies import RoundRobin
from core.balancing.pool import Pool
from core.balancing.probing import Probing
from core.balancing.request import Wish
from core.balancing.specs import Spec


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class WholePool(Pool):
    """A pool with those who change it."""

    def __init__(self, specs, policy=None, **how):
        super().__init__(policy or RoundRobin(), **how)
        self.membership, self.probing = Membership(self, specs), Probing(self)


def pool_of(count, slots=4, models=None, clock=None, policy=None, **how):
    """Return a pool of backends http://b0, http://b1, … that are up; `models` lists what each has, loaded one first."""
    pool = WholePool([Spec("http://b%d" % i) for i in range(count)], policy, clock=clock or Clock(), **how)
    for i, backend in enumerate(pool.probing.due(0)):
        pool.probing.probed(backend, well(slots, models[i] if models else None), 30)
    return pool


def well(slots=4, models=None, **how):
    listed = models and [{"name": name, "loaded": name == models[0]} for name in models]
    return Report(True, slots=slots, model=models[0] if models else None, told=True, models=listed, **how)


def take(pool, wish=Wish(), tried=(), **how):
    return pool.request(wish, set(tried), **how)


def names(pool, count, **how):
    return "".join(take(pool, **how).backend.url[-1] for _ in range(count))


def fall(pool, backend, times=3):
    for _ in range(times):
        pool.probing.probed(backend, Report(False, "gone"), 30)
