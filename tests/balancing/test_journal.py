"""The journal: what is noted of requests in flight, in memory that outlives a process that is killed at any point."""

import os
import sys

import pytest

from core.balancing.journal import BEGUN, SIZE, SLOT, SLOTS, Journal

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has such memory")


@pytest.fixture
def memory():
    fd = os.memfd_create("test")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def told(journal):
    """What another process finds."""
    return [slot.read()[2:] for slot in journal.left()]


def test_another_process_reads_what_was_noted(memory):
    slot = Journal(memory).take(7, b"request", b"a\n", 100)
    assert told(Journal(memory)) == [(b"request", b"a\n", b"", 100, 0)]
    slot.commit(b"b\n", b"bytes", 105, BEGUN)
    assert told(Journal(memory)) == [(b"request", b"a\nb\n", b"bytes", 105, BEGUN)]
    slot.commit(b"c\n", b"", 105, BEGUN)
    assert told(Journal(memory)) == [(b"request", b"a\nb\nc\n", b"", 105, BEGUN)]


def test_another_process_goes_on_noting_and_counts_that_it_does(memory):
    Journal(memory).take(7, b"request", b"a\n", 100)
    (slot,) = Journal(memory).left()
    slot.adopt()
    slot.commit(b"b\n", b"bytes", 105, BEGUN)
    (slot,) = Journal(memory).left()
    assert slot.read() == (7, 1, b"request", b"a\nb\n", b"bytes", 105, BEGUN)


def test_what_is_given_back_is_not_found_and_its_place_is_used_again(memory):
    journal = Journal(memory)
    journal.give_back(journal.take(1, b"first", b"n\n", 0))
    assert not told(Journal(memory))
    journal.take(2, b"second", b"", 5)
    assert told(Journal(memory)) == [(b"second", b"", b"", 5, 0)]


def test_the_next_process_learns_which_serial_numbers_were_used(memory):
    journal = Journal(memory)
    journal.give_back(journal.take(41, b"", b"", 0))
    assert Journal(memory).last_serial == 41


def test_what_does_not_fit_is_not_noted_and_changes_nothing(memory):
    journal = Journal(memory)
    assert journal.take(1, b"x" * (SLOT + 1), b"", 0) is None
    slot = journal.take(2, b"x" * (SLOT - 10), b"12345", 0)
    assert not slot.commit(b"678", b"90!", 3, 0)
    assert told(Journal(memory))[0][1:] == (b"12345", b"", 0, 0)


def test_there_is_a_bound_to_the_requests_that_are_noted(memory):
    journal = Journal(memory)
    taken = [journal.take(serial, b"", b"", 0) for serial in range(1, SLOTS + 2)]
    assert None not in taken[:-1] and taken[-1] is None


def test_much_memory_goes_back_to_the_system(memory):
    journal = Journal(memory)
    slots = [journal.take(serial, b"x" * (SLOT // 2), b"", 0) for serial in range(1, 9)]
    assert os.fstat(memory).st_blocks * 512 > 4 * SLOT
    for slot in slots:
        journal.give_back(slot)
    assert os.fstat(memory).st_blocks * 512 < SLOT


class Killed(Exception):
    pass


class Failing:
    """Memory that ends its process at the store with a number."""

    def __init__(self, memory, stores):
        self.memory, self.stores = memory, stores

    def __getitem__(self, key):
        return self.memory[key]

    def __setitem__(self, key, value):
        if not self.stores[0]:
            raise Killed()
        self.stores[0] -= 1
        self.memory[key] = value

    def madvise(self, *arguments):
        pass


def killed_after(stores, slot, act):
    """Act on a slot, whose process is killed after so many stores; returns whether it was."""
    count = [stores]
    slot._memory, slot._words = Failing(slot._memory, count), Failing(slot._words, count)
    try:
        act(slot)
        return False
    except Killed:
        return True


def test_a_process_killed_while_it_notes_has_noted_all_of_it_or_nothing(memory):
    stores, seen = 0, set()
    while True:
        slot = Journal(memory).take(1, b"request", b"a\n", 100)
        slot.commit(b"b\n", b"bytes", 105, BEGUN)
        died = killed_after(stores, slot, lambda slot: slot.commit(b"c\n", b"next", 109, BEGUN))
        journal = Journal(memory)
        (entry,) = told(journal)
        assert entry[3:] in ((105, BEGUN), (109, BEGUN))
        if entry[3] == 105:  # all bytes up to there are in the kernel: these are not asked for
            assert entry[:2] == (b"request", b"a\nb\n")
        else:
            assert entry[:3] == (b"request", b"a\nb\nc\n", b"next")
        seen.add(entry[3])
        journal.give_back(journal.left()[0])
        stores += 1
        if not died:
            break
    assert seen == {105, 109} and stores > 5


def test_a_process_killed_while_it_takes_a_slot_has_noted_the_request_or_nothing(memory):
    stores, seen = 0, set()
    died = True
    while died:
        journal = Journal(memory)
        old = journal.take(1, b"another", b"one\n", 9)
        journal.give_back(old)
        died = killed_after(stores, old, lambda slot: slot.begin(2, b"request", b"a\n", 100))
        after = Journal(memory)
        entries = told(after)
        assert entries in ([], [(b"request", b"a\n", b"", 100, 0)])
        seen.add(len(entries))
        for slot in after.left():
            after.give_back(slot)
        stores += 1
    assert seen == {0, 1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
def test_memory_that_was_never_written_is_not_taken(memory):
    journal = Journal(memory)
    journal.take(1, b"request", b"", 0)
    assert os.fstat(memory).st_blocks * 512 <= 256 << 10
