"""lmms-eval's response cache with answers that are no texts, and with runs that end before their end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.caching.response_cache import ResponseCache

from lmms_flexselect.models.records import Answer, Likelihood
from lmms_flexselect.models.upstream import mend_response_cache

ANSWERS = {
    "generate_until": Answer("A"),
    "generate_until_multi_round": Answer(["A", "B"]),
    "loglikelihood": Likelihood((0.5, True)),
}


def requests(kind, texts="abc"):
    second = "A" if kind == "loglikelihood" else {"temperature": 0}
    return [
        Instance(kind, (text, second, len, n, "task", "test"), 0, {"task": "task", "doc_id": n, "repeats": 1})
        for n, text in enumerate(texts)
    ]


class Model:
    """Of ours by its name; notes what it is asked, and gives what `answer` makes of a request."""

    upstream_name = "llava_vid"
    keep: Any

    def __init__(self, answer):
        self.answer, self.asked, self.joined = answer, [], []
        for kind in ANSWERS:
            setattr(self, kind, self.answers)

    def answers(self, given):
        self.asked += [request.args[0] for request in given]
        return [self.answer(request) for request in given]

    def after_response_cache(self, kind, given):
        self.joined.append(kind)


@pytest.fixture
def execute(tmp_path):
    """`ResponseCache.execute` of a run: a new cache in the same folder, merged in the end."""
    mend_response_cache()

    def run(model, kind, given):
        cache = ResponseCache.create(str(tmp_path / "cache"), model="llava_vid_flexselect", model_args="a=1")
        done = False
        try:
            answers = cache.execute(model, kind, given)
            done = True
        finally:
            cache.finalize(success=done, dist_backend="none")
        return answers

    return run


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_second_run_gets_what_the_first_was_given(execute, kind):
    model = Model(lambda request: ANSWERS[kind])
    first = execute(model, kind, requests(kind))
    again = execute(model, kind, requests(kind))
    assert model.asked == ["a", "b", "c"]
    assert model.joined == [kind, kind]
    assert first == [ANSWERS[kind]] * 3
    assert again == [ANSWERS[kind]] * 3


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_was_answered_without_its_video_is_not_kept(execute, kind):
    bad = type(ANSWERS[kind])(ANSWERS[kind].text, None, "bad.mp4: is empty")
    model = Model(lambda request: bad if request.args[0] == "b" else ANSWERS[kind])
    assert execute(model, kind, requests(kind)) == [ANSWERS[kind], bad, ANSWERS[kind]]
    assert execute(model, kind, requests(kind)) == [ANSWERS[kind], bad, ANSWERS[kind]]
    assert model.asked == ["a", "b", "c", "b"]


def test_repeats_get_an_answer_each_in_their_order(execute):
    numbers = iter(range(9))
    model = Model(lambda request: Answer(str(next(numbers))))
    first, second = requests("generate_until", "ab")
    for request in (first, second):
        request.args[1]["temperature"] = 1.0
    answers = execute(model, "generate_until", [first, first, second, first])
    assert [answer.text for answer in answers] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_finished_is_there_for_the_next_run(execute, kind, error):
    """Also the answers to other processes' requests, of which this cache has never heard."""

    class Ends(Model):
        def answers(self, given):
            foreign = requests(kind, "xyz")[2]
            self.keep([(request, ANSWERS[kind]) for request in (*given[:2], foreign)])
            raise error

    with pytest.raises(error):
        execute(Ends(None), kind, requests(kind))
    model = Model(lambda request: ANSWERS[kind])
    assert execute(model, kind, [*requests(kind), requests(kind, "xyz")[2]]) == [ANSWERS[kind]] * 4
    assert model.asked == ["c"]


def test_other_models_are_served_as_ever(execute):
    model = SimpleNamespace(generate_until=lambda given: ["A" for _ in given])
    assert execute(model, "generate_until", requests("generate_until")) == ["A"] * 3
