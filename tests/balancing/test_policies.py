"""The policies, each with backends that are only numbers."""

import pytest

from core.balancing.homes import home_of, seed_of
from core.balancing.policies import LeastBusy, Prefix, RoundRobin
from core.balancing.request import Wish, beginnings, head_of


class Numbers:
    """A backend as policies see it."""

    def __init__(self, number, share=1.0, slots=4):
        self.number, self.share, self.slots = number, share, slots
        self.credit, self.outstanding, self.life = 0.0, 0, 1
        self.url = "http://b%d" % number
        self.seed, self.capacity = seed_of(self.url), slots * share

    @property
    def load(self):
        return self.outstanding / (self.slots * self.share)


def chosen(policy, backends, count, wish=Wish()):
    return "".join(str(policy.choose(backends, wish).number) for _ in range(count))


def prompt(text, shared=False):
    """Return the wish for a prompt; with a head where several balancers share the backends."""
    fields = {"prompt": text}
    return Wish(beginnings=beginnings(fields), head=head_of(fields) if shared else 0)


def test_round_robin_goes_round():
    assert chosen(RoundRobin(), [Numbers(0), Numbers(1), Numbers(2)], 7) == "0120120"


def test_the_cursor_goes_on_where_it_was_when_backends_come_and_go():
    policy, backends = RoundRobin(), [Numbers(0), Numbers(1), Numbers(2)]
    assert chosen(policy, backends, 2) == "01"
    assert chosen(policy, backends[:1] + backends[2:], 2) == "20"
    assert chosen(policy, backends, 2) == "12"


@pytest.mark.parametrize("weights", [(2, 1), (1, 3), (1, 2, 5), (0.1, 1), (1.5, 1)])
def test_round_robin_gives_each_backend_its_weights_share(weights):
    backends = [Numbers(i, weight) for i, weight in enumerate(weights)]
    order = chosen(RoundRobin(), backends, 1000)
    for each in backends:
        assert order.count(str(each.number)) == pytest.approx(1000 * each.share / sum(weights), abs=3)


def test_least_busy_takes_the_one_with_the_fewest_outstanding_for_its_capacity():
    small, large = Numbers(0, slots=2), Numbers(1, slots=8)
    small.outstanding, large.outstanding = 1, 3
    assert LeastBusy().choose([small, large], Wish()) is large


def test_least_busy_breaks_ties_with_the_cursor():
    assert chosen(LeastBusy(), [Numbers(0), Numbers(1), Numbers(2)], 6) == "012012"


def test_prefix_stays_with_the_backend_that_has_seen_the_prompts_beginning():
    policy, backends = Prefix(), [Numbers(i) for i in range(4)]
    story = "Once upon a time there was a king who had three daughters. " * 10
    home = policy.choose(backends, prompt(story))
    for turn in range(5):
        assert policy.choose(backends, prompt(story + "And then? " * 10 * turn)) is home
    assert policy.hits == 5


def test_prefix_spreads_prompts_that_it_has_not_seen():
    policy, backends = Prefix(), [Numbers(i) for i in range(4)]
    homes = [policy.choose(backends, prompt(str(n) * 500)).number for n in range(8)]
    assert homes == [0, 1, 2, 3] * 2 and policy.hits == 0


def test_prefix_leaves_a_backend_that_is_busier_than_what_it_saves():
    policy, backends = Prefix(), [Numbers(i) for i in range(4)]
    story = "Once upon a time. " * 64  # 18 chunks, of which the next prompt is twice as many
    home = policy.choose(backends, prompt(story))
    home.outstanding = 2  # score 0.5 - (0.5 - 0.125) against 0 + 0.125: still as good
    assert policy.choose(backends, prompt(story + "One. " * 231)) is home
    home.outstanding = 3  # 0.5 - (0.75 - 0.1875) against 0 + 0.1875
    assert policy.choose(backends, prompt(story + "Two. " * 231)) is not home


def test_prefix_forgets_what_a_backend_had_in_memory_before_it_started_again():
    policy, backends = Prefix(), [Numbers(i) for i in range(2)]
    story = "Once upon a time. " * 50
    home = policy.choose(backends, prompt(story))
    home.life = 2
    assert policy.choose(backends, prompt(story)) is not home


def test_prefix_remembers_a_bounded_number_of_beginnings():
    policy = Prefix()
    policy.REMEMBERED = 100
    backends = [Numbers(0)]
    for number in range(50):
        policy.choose(backends, prompt("%02d" % number * 250))
    assert len(policy._seen) == 100
    policy.choose(backends, prompt("49" * 250))
    assert policy.hits == 1  # the latest are remembered


# ------------------------------------------------------------------------------------------- several balancers


def stories(count):
    return [prompt("%04d" % number * 100, shared=True) for number in range(count)]


def test_balancers_that_know_nothing_of_each_other_find_the_same_home():
    one, two = [Numbers(i) for i in range(8)], [Numbers(i) for i in (5, 2, 0, 7, 1, 6, 4, 3)]
    for wish in stories(50):
        assert Prefix().choose(one, wish).url == Prefix().choose(two, wish).url


def test_a_home_counts_as_having_seen_what_only_another_balancer_may_know():
    backends = [Numbers(i) for i in range(4)]
    (wish,) = stories(1)
    home = home_of(backends, wish.head)
    home.outstanding = 3  # 1 - 0.75 against 0
    assert Prefix().choose(backends, wish) is home
    home.outstanding = 5
    assert Prefix().choose(backends, wish) is not home


def test_a_conversation_goes_home_again_from_where_its_last_turn_was():
    policy, backends = Prefix(), [Numbers(i) for i in range(4)]
    story = "Once upon a time. " * 50
    first, later = prompt(story, shared=True), prompt(story + "And then? " * 20, shared=True)
    home = home_of(backends, first.head)
    policy.choose([backend for backend in backends if backend is not home], first)  # the home was full
    assert policy.choose(backends, later) is home


def test_a_backend_that_comes_takes_its_share_and_one_that_goes_leaves_the_others_where_they_are():
    before, after = [Numbers(i) for i in range(7)], [Numbers(i) for i in range(8)]
    moved = 0
    for wish in stories(2000):
        old, new = home_of(before, wish.head).number, home_of(after, wish.head).number
        assert new in (old, 7)
        moved += new == 7
    assert moved == pytest.approx(2000 / 8, abs=60)


def test_homes_are_spread_by_capacity():
    backends = [Numbers(0, slots=4), Numbers(1, slots=8), Numbers(2, share=2.0, slots=2)]
    homes = [home_of(backends, wish.head).number for wish in stories(2000)]
    assert [homes.count(number) / 2000 for number in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_backends_that_tell_the_same_name_are_told_apart_by_their_urls():
    backends = [Numbers(i) for i in range(2)]
    for each in backends:
        each.seed = seed_of("localhost:8080")
    homes = [home_of(backends, wish.head).number for wish in stories(200)]
    assert 60 < sum(homes) < 140
    assert [home_of(backends[::-1], wish.head).number for wish in stories(200)] == homes


def test_seeds_and_heads_are_the_same_in_every_process():
    assert seed_of("http://gpu1:8080") == 16994547938144474748
    assert prompt("Once upon a time", shared=True).head == 10882166053174126593
