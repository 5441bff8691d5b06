"""Work spread over processes: results in order, and a process that dies costs the item it died of, nothing else."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait

import cv2


def map_in_order(function: Callable, items: Iterable, workers: int, crashed: Callable) -> Iterator:
    """Yields function(item) for every item, in order; at most two items a worker are under way or waiting.

    Args:
        function: picklable, as are items and results. workers: number of processes; 0 works in this one.
        crashed: item -> what stands for its result where it kills every process that works on it (broken files do
            that to decoders).

    Raises whatever `function` raises.
    """
    if workers == 0:
        yield from map(function, items)
        return
    items, pending, pool = iter(items), deque(), _pool(workers)
    try:
        while True:
            pending.extend((item, _submit(pool, function, item)) for item in islice(items, 2 * workers - len(pending)))
            if not pending:
                return
            item, future = pending.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                # Some item took its process down, and the pool with it. This one is tried alone, to be sure it is it.
                pool.shutdown(wait=False, cancel_futures=True)
                result = _alone(function, item, crashed)
                pool = _pool(workers)
                pending = deque((waiting, _submit(pool, function, waiting)) for waiting, _ in pending)
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers):
    # Not forked: MindSpore's threads would be missing in a copy of this process, its locks would not.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker():
    cv2.setNumThreads(1)
    # Ctrl-C goes to them too; the parent hears of it and ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_the_parent():
        wait([parent.sentinel])
        os._exit(1)

    # A killed parent cannot tell its workers to stop; they would wait for work for ever.
    threading.Thread(target=leave_with_the_parent, daemon=True).start()


def _submit(pool, function, item):
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        future = Future()
        future.set_exception(error)
        return future


def _alone(function, item, crashed):
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return crashed(item)
