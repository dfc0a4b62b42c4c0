"""Patches of several requests on common runners: whose turn it is, what waits, what is forgotten, and memory."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2ilib.deploy import Runner
from i2ilib.deploy.runner import Serial
from i2ilib.errors import I2IError
from i2ilib.serve.scheduler import Cancelled, Memory, Pool, Slots, Work


class Doubling(Serial):
    """A runner that doubles, and remembers its batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def _run(self, batch):
        self.batches.append(batch.clone())
        return batch * 2


class Gated:
    """A runner that starts what it is given when the test says so; one batch in flight."""

    def __init__(self):
        self.seen, self.open = [], threading.Semaphore(0)

    def submit(self, batch):
        self.seen.append([int(v) for v in batch[:, 0, 0, 0]])
        self.open.acquire()
        future = Future()
        future.set_result(batch * 2)
        return future

    def until(self, count):
        end = time.monotonic() + 10
        while len(self.seen) < count and time.monotonic() < end:
            time.sleep(0.005)
        assert len(self.seen) >= count


def patches(*numbers, side=2):
    return torch.tensor([float(n) for n in numbers])[:, None, None, None].expand(-1, 1, side, side).clone()


def test_a_share_is_a_runner():
    with Doubling() as runner, Pool([runner]) as pool:
        share = Work().share(pool)
        assert isinstance(share, Runner)
        share.prepare((1, 1, 2, 2))
        with share as entered:
            assert torch.equal(entered.run(patches(1, 2, 3)), patches(2, 4, 6))
    with pytest.raises(I2IError, match="float32"):
        share.submit(torch.zeros(1, 2))


def test_a_small_request_does_not_wait_behind_a_large_one():
    runner = Gated()
    with Pool([runner], batch=4, ahead=10) as pool:
        large = [Work().share(pool).submit(patches(*range(100, 130)))]
        runner.until(1)  # its first batch is on its way
        small = Work().share(pool).submit(patches(7))
        runner.open.release()
        runner.until(2)
        assert 7 in runner.seen[1]
        runner.open.release()
        assert torch.equal(small.result(10), patches(14))
        assert not large[0].done()
        runner.open.release(20)
        assert torch.equal(large[0].result(10), 2 * patches(*range(100, 130)))


def test_requests_take_turns_and_fill_common_batches():
    runner = Gated()
    with Pool([runner], batch=4, ahead=10) as pool:
        first = Work().share(pool).submit(patches(0))  # holds the runner
        runner.until(1)
        futures = [Work().share(pool).submit(patches(*range(base, base + 4))) for base in (10, 20, 30)]
        runner.open.release(100)
        for future in [first, *futures]:
            future.result(10)
    assert runner.seen[1:] == [[10, 20, 30, 11], [21, 31, 12, 22], [32, 13, 23, 33]]
    assert (pool.patches, pool.batches, pool.waiting) == (13, 4, 0)


def test_patches_of_other_sizes_go_in_their_own_batch_and_first_next_time():
    runner = Gated()
    with Pool([runner], batch=4, ahead=10) as pool:
        Work().share(pool).submit(patches(0))
        runner.until(1)
        a = Work().share(pool).submit(patches(1, 2, 3))
        b = Work().share(pool).submit(patches(5, 6, side=3))
        runner.open.release(100)
        assert a.result(10).shape[-1] == 2 and b.result(10).shape[-1] == 3
    assert runner.seen[1:] == [[1, 2, 3], [5, 6]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5), st.integers(1, 5))
def test_everybody_gets_their_own_results_in_their_order(sizes, batch):
    with Doubling() as one, Doubling() as two, Pool([one, two], batch=batch, ahead=2) as pool:

        def request(number):
            share, got, n = Work().share(pool), [], 0
            for size in sizes[number]:
                mine = patches(*(1000 * number + n + i for i in range(size)))
                n += size
                got.append((share.submit(mine), 2 * mine))
            return all(torch.equal(future.result(10), expected) for future, expected in got)

        with ThreadPoolExecutor(len(sizes)) as crowd:
            assert all(crowd.map(request, range(len(sizes))))
    assert all(len(seen) <= batch for seen in one.batches + two.batches)
    assert pool.patches == sum(map(sum, sizes))


def test_who_leaves_is_forgotten_and_others_go_on():
    runner = Gated()
    with Pool([runner], batch=2, ahead=10) as pool:
        gone, stays = Work(), Work()
        share = gone.share(pool)
        futures = [share.submit(patches(1, 2)), share.submit(patches(3, 4, 5))]
        runner.until(1)
        other = stays.share(pool).submit(patches(9))
        gone.cancel()
        with pytest.raises(Cancelled):
            futures[1].result(10)
        runner.open.release(10)
        assert torch.equal(other.result(10), patches(18))
        with pytest.raises(Cancelled):
            share.submit(patches(1))
        with pytest.raises(Cancelled):
            gone.share(pool)
    assert runner.seen == [[1, 2], [9]] and pool.waiting == 0


def test_submitting_blocks_while_enough_waits():
    runner = Gated()
    with Pool([runner], batch=1, ahead=2) as pool:
        share, submitted = Work().share(pool), []

        def feed():
            for i in range(6):
                submitted.append(share.submit(patches(i)))

        thread = threading.Thread(target=feed)
        thread.start()
        runner.until(1)
        time.sleep(0.1)
        assert len(submitted) == 3  # one with the runner, two waiting
        runner.open.release(10)
        thread.join(10)
        assert [int(f.result(10)[0, 0, 0, 0]) for f in submitted] == [0, 2, 4, 6, 8, 10]


def test_leaving_ends_a_submission_that_blocks():
    runner = Gated()
    with Pool([runner], batch=1, ahead=1) as pool, ThreadPoolExecutor(1) as other:
        work = Work()
        share = work.share(pool)
        share.submit(patches(1))
        runner.until(1)
        share.submit(patches(2))
        blocked = other.submit(share.submit, patches(3))
        time.sleep(0.05)
        work.cancel()
        with pytest.raises(Cancelled):
            blocked.result(10)
        runner.open.release(5)


def test_what_does_not_fill_a_quarter_of_a_batch_goes_one_by_one():
    with Doubling() as many, Doubling() as one, Pool([many], batch=8, single=one, ahead=4) as pool:
        share = Work().share(pool)
        for count in (1, 2, 3, 8):
            mine = patches(*range(count))
            assert torch.equal(share.run(mine), 2 * mine)
    assert [len(batch) for batch in one.batches] == [1, 1, 1] and [len(batch) for batch in many.batches] == [3, 8]
    assert (pool.patches, pool.batches, pool.places) == (14, 5, 3 + 2 * 8)


class Broken:
    def __init__(self, how):
        self.how = how

    def submit(self, batch):
        if self.how == "submit":
            raise RuntimeError("no device")
        future = Future()
        if self.how == "run":
            future.set_exception(RuntimeError("no device"))
        else:
            future.set_result(batch[:-1])
        return future


@pytest.mark.parametrize(("how", "told"), [("submit", "no device"), ("run", "no device"), ("short", "2 results")])
def test_what_a_runner_raises_reaches_the_request_and_the_pool_lives(how, told):
    with Pool([Broken(how)], batch=4) as pool:
        for _ in range(2):
            with pytest.raises((RuntimeError, I2IError), match=told):
                Work().share(pool).run(patches(1, 2))


def test_a_pool_needs_runners_and_refuses_when_closed():
    with pytest.raises(I2IError, match="runners"):
        Pool([])
    with pytest.raises(I2IError, match="batch"):
        Pool([Doubling()], batch=0)
    pool = Pool([Doubling()])
    share = Work().share(pool)
    pool.close()
    with pytest.raises(I2IError, match="open"):
        share.submit(patches(1))


# --- memory ------------------------------------------------------------------------------------------


def test_memory_is_counted_as_it_comes_and_one_may_go_beyond():
    memory = Memory(100)
    with memory.claim() as a, memory.claim() as b:
        a.grow(60)
        b.grow(40)
        a.grow(30)  # the first that asks for more than there is
        with pytest.raises(TimeoutError):
            b.grow(1, seconds=0.05)
        a.release()
        b.grow(60, seconds=1)
        assert memory.used == 100
    assert memory.used == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=8))
def test_messages_that_outgrow_memory_together_all_finish(messages):
    memory, most = Memory(60), max(map(sum, messages))
    seen = []

    def one(steps):
        with memory.claim() as claim:
            for step in steps:
                claim.grow(step, seconds=10)
                seen.append(memory.used)

    with ThreadPoolExecutor(len(messages)) as crowd:
        list(crowd.map(one, messages))
    assert memory.used == 0 and max(seen) <= 60 + most


def test_a_reply_takes_the_place_of_its_request():
    memory = Memory(10)
    with memory.claim() as claim:
        claim.grow(8)
        claim.force(50)
        assert memory.used == 50
    assert memory.used == 0


def test_slots_are_first_come_first_served():
    slots, order = Slots(1, waiting=2), []
    with slots.taken(Work()):
        gone = Work()

        def one(work, name):
            with slots.taken(work):
                order.append(name)

        threads = []
        for work, name in ((gone, "gone"), (Work(), "stays")):
            threads.append(threading.Thread(target=lambda w=work, n=name: _quietly(one, w, n)))
            threads[-1].start()
            time.sleep(0.05)
        with pytest.raises(I2IError, match="at most 2 requests that wait"), slots.taken(Work()):
            pass
        gone.cancel()
        threads[0].join(10)
    threads[1].join(10)
    assert order == ["stays"]
    with slots.taken(Work()):  # the slot came back
        pass


def _quietly(function, *arguments):
    try:
        function(*arguments)
    except Cancelled:
        return
