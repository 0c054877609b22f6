"""The queue of requests that wait for a backend: bounded, first come first served for each client, clients in turn.

If one client sends a thousand requests, they wait for each other; another client's first request is the second to be
served. A full queue refuses the client that has most in it. Where that is not the newcomer, the last request of the
client that has most makes room.

Nothing here locks or waits: the pool's lock guards it.
"""

from collections import OrderedDict, deque
from typing import Callable, Deque, Generic, Optional, TypeVar

Item = TypeVar("Item")


class Full(Exception):
    """There is no room for another request of this client."""


class FairQueue(Generic[Item]):
    """At most `size` items, in a line for each client."""

    def __init__(self, size: int):
        self.size = size
        self._length = 0
        self._lines: "OrderedDict[str, Deque[Item]]" = OrderedDict()  # the next line to be served stands first

    def __len__(self) -> int:
        return self._length

    def push(self, who: str, item: Item, first: bool = False, must: bool = False) -> Optional[Item]:
        """Put an item at the end of its client's line, or first. Returns the one that had to make room. Raises Full.

        One that `must` be taken, since its client has seen a part of the answer, is taken although the queue is full.
        """
        displaced = self._make_room(who) if self._length >= self.size and not must else None
        line = self._lines.setdefault(who, deque())
        if first:
            line.appendleft(item)
        else:
            line.append(item)
        self._length += 1
        return displaced

    def pop(self, fits: Callable[[Item], bool]) -> Optional[Item]:
        """Take the first item that fits, in the order of the clients' turns; its client's next turn is the last."""
        for who, line in self._lines.items():
            for item in line:
                if fits(item):
                    self.remove(who, item)
                    if who in self._lines:
                        self._lines.move_to_end(who)
                    return item
        return None

    def any(self, fits: Callable[[Item], bool]) -> bool:
        """Whether an item fits."""
        return any(fits(item) for line in self._lines.values() for item in line)

    def remove(self, who: str, item: Item) -> bool:
        """Take an item out, wherever it stands; False if it is not here."""
        line = self._lines.get(who)
        if line is None or item not in line:
            return False
        line.remove(item)
        self._length -= 1
        if not line:
            del self._lines[who]
        return True

    def _make_room(self, who: str) -> Item:
        longest = max(self._lines, key=lambda client: len(self._lines[client]), default=who)
        if len(self._lines.get(longest, ())) <= len(self._lines.get(who, ())) + 1:
            raise Full()
        displaced = self._lines[longest][-1]
        self.remove(longest, displaced)
        return displaced
