"""items -> the same items, the next one made on a thread of its own while one is in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order, made on another thread, never more than one ahead.

    So at most three exist: one being made, one ready, one in use. What goes wrong in making an
    item is raised where it is asked for.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="leuda-prefetch") as worker:
        coming = worker.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # whatever is not `end` came from `items`
