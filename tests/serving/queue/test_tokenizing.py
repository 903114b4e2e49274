"""Whose texts are read when, and how far: the thread that tokenizes what is long."""

import asyncio
import threading
from functools import partial

import pytest
from rows import inputs_of, spec_of

from deploykit import tasks
from deploykit.serving.problems import Problem
from deploykit.serving.queue.tokenizing import TokenizerQueue
from deploykit.serving.settings import load_settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tokenizer import MAX_CHARACTERS_PER_TOKEN, Tokenizer, join_windows

WINDOWS, TOKENS = 64, 16
MOST = WINDOWS * TOKENS * MAX_CHARACTERS_PER_TOKEN  # characters of a text that are read
LONG = "film " * 3000  # a turn of the thread, nearly


class Turns:
    """Stands before a task's `encode`: notes who is read, waits for `go`, and fails where a text says so."""

    def __init__(self, tokenizer):
        self.read, self.threads, self.tokenizer = [], [], tokenizer
        self.task, self.spec = tasks.load("text-classification"), spec_of(("a", "b"), max_windows=WINDOWS)
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, inputs):
        self.read += [word for item in inputs for word in item.text.split(maxsplit=1)[:1]]
        self.threads.append(threading.get_ident())
        self.started.set()
        assert self.go.wait(10)
        if inputs[0].text.startswith("bad"):
            raise RuntimeError("boom")
        return self.task.encode(inputs, self.tokenizer, self.spec)


@pytest.fixture
def tokenizer(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder, TOKENS)


@pytest.fixture
def run(package, tokenizer):
    """`run(scenario, **changes) -> Turns`: `scenario(read, turns)` with a queue of these settings."""

    def call(scenario, **changes):
        settings = load_settings(package, {"DEPLOYKIT_AUTH": "off"})[0].model_copy(update=changes)
        turns = Turns(tokenizer)

        async def body():
            tokenizer_queue = TokenizerQueue(turns, MOST, settings, Metrics(["/v1/predict"], ["a", "b"]))

            def read(*texts, pairs=None, timeout_s=10, gone=None, client="none"):
                tokenizing = tokenizer_queue.tokenize(inputs_of(texts, pairs), timeout_s, gone, client)
                return asyncio.get_running_loop().create_task(tokenizing)

            try:
                await asyncio.wait_for(scenario(read, turns), 20)
            finally:
                turns.go.set()
                tokenizer_queue.close()

        asyncio.run(body())
        return turns

    return call


async def until(event):
    while not event.is_set():
        await asyncio.sleep(0.001)


def named(name, count):
    return [f"{name}{index} {LONG}" for index in range(count)]


def test_clients_take_turns_and_a_request_of_many_texts_holds_nobody_up(run):
    async def scenario(read, turns):
        first = read(*named("a", 8), client="alice")
        await until(turns.started)
        more = read(*named("b", 8), client="alice")
        bob = read(*named("c", 2), client="bob")
        await asyncio.sleep(0)
        turns.go.set()
        assert [len(found) for found in await asyncio.gather(first, more, bob)] == [8, 8, 2]

    order = run(scenario, max_wait_s=5).read
    assert len(order) == 18
    assert order.index("c0") <= 3
    assert order.index("c1") <= 6
    assert order.index("b0") < order.index("a7")


def test_answers_are_those_of_one_text_at_a_time(run, tokenizer):
    texts = ["a great film", *named("x", 3), "", "what a day " * 3000]

    async def scenario(read, turns):
        turns.go.set()
        for one, whole in zip(await read(*texts), tokenizer.windows(texts, WINDOWS), strict=True):
            assert [window.text for window in one] == [window.text for window in whole]
            assert (join_windows(one).ids == join_windows(whole).ids).all()

    run(scenario)


def test_a_text_is_read_as_far_as_windows_may_hold_it_and_says_so(run):
    words = "film" + " " * 100

    async def scenario(read, turns):
        turns.go.set()
        fits, longer = (words * MOST)[:MOST], (words * MOST)[: MOST + 1]
        assert [join_windows(found).truncated for found in await read(fits, longer)] == [False, True]
        assert max(join_windows((await read("film" * 10**6))[0]).offsets[:, 1]) <= MOST
        for pair, cut in ((("film", longer), True), ((longer, "film"), True), (("film", "a film"), False)):
            ((window,),) = await read(pair[0], pairs=[pair[1]])
            assert window.encoding.truncated is cut

    run(scenario)


def test_what_the_end_of_the_room_cuts_through_is_masked(run):
    async def scenario(read, turns, expected="xxxx@x"):
        turns.go.set()
        (windows,) = await read(" " * (MOST - 6) + "anna@mail.example and more")
        assert windows[-1].text.strip() == expected

    run(scenario, redact=True)
    run(partial(scenario, expected="anna@m"))


def test_who_would_wait_for_too_long_is_refused_and_others_are_not(run):
    async def scenario(read, turns):
        first = read(*named("a", 4), client="alice")
        await until(turns.started)
        more = [read(*named("b", 20), client="alice") for _ in range(3)]
        await asyncio.sleep(0)
        bob = read(*named("c", 1), client="bob")
        await asyncio.sleep(0)
        turns.go.set()
        found = await asyncio.gather(first, *more, bob, return_exceptions=True)
        problems = [one for one in found if isinstance(one, Problem)]
        assert {(problem.status, problem.reason) for problem in problems} == {(503, "queue_full")}
        assert int(problems[0].headers["retry-after"]) >= 1
        assert len(problems) == 2
        assert len(found[-1]) == 1

    run(scenario, max_wait_s=0.3)


def test_only_the_request_fails_whose_text_does(run):
    async def scenario(read, turns):
        turns.go.set()
        found = await asyncio.gather(read(f"bad {LONG}"), read(*named("a", 2)), return_exceptions=True)
        assert [type(one) for one in found] == [RuntimeError, list]
        assert len(await read(*named("b", 1))) == 1

    run(scenario)


def test_late_and_left_requests_are_not_read(run):
    async def scenario(read, turns):
        gone = asyncio.get_running_loop().create_future()
        first = read(*named("a", 1))
        await until(turns.started)
        late, left = read(*named("b", 2), timeout_s=0.01), read(*named("c", 2), gone=gone)
        await asyncio.sleep(0.05)
        gone.set_result(None)
        problems = await asyncio.gather(late, left, return_exceptions=True)
        assert [problem.status for problem in problems] == [504, 499]
        turns.go.set()
        await first
        await read(*named("d", 1))

    assert run(scenario).read == ["a0", "d0"]


def test_many_empty_texts_are_not_tokenized_on_the_event_loop(run):
    async def scenario(read, turns):
        turns.go.set()
        await read(*[""] * 20)
        await read(*[""] * 5000)

    turns = run(scenario)
    assert turns.threads[0] == threading.get_ident()
    assert threading.get_ident() not in turns.threads[1:]
