"""Questions, the windows of their contexts, and the choice of an answer or none."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.modeling.losses import MAX_LOGIT, max_magnitude
from deploykit.tasks import Spec
from deploykit.tasks import question_answering as task
from deploykit.tasks.question_answering import Input, Prediction
from deploykit.tokenizer import Encoding, Features, Tokenizer

COLUMNS = {role: column.default for role, column in task.COLUMNS.items()}
SPEC = Spec((), task.Options(stride=12))
CONTEXT = "anna lives in london . maria lives in paris . peter was there until the end of the film ."


def read(**row):
    return task.reader([row], COLUMNS)({"question": "where ?", "context": CONTEXT, **row})


def outputs_for(features, answer, confidence=9.0):
    """Outputs that are certain of an answer's tokens wherever they are shown, and of no answer elsewhere."""
    found = []
    for part in features:
        start, end = np.zeros(len(part), np.float32), np.zeros(len(part), np.float32)
        target = task.targets(answer, part, SPEC)
        start[target["start"]], end[target["end"]] = confidence, confidence
        found.append({"start_logits": start, "end_logits": end})
    return found


@pytest.fixture(scope="module")
def short(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder, 32)


@pytest.mark.parametrize(
    "answers",
    [
        [{"text": "london", "start": 14}],
        [{"text": "london", "answer_start": 14}],
        {"text": ["london"], "answer_start": [14]},
    ],
    ids=["list", "squad-list", "squad"],
)
def test_answers_are_read_in_every_form(answers):
    assert read(answers=answers).target == (("london", 14, 0),)


@pytest.mark.parametrize("answers", [[], None, {"text": [], "answer_start": []}], ids=repr)
def test_a_question_may_have_no_answer(answers):
    example = read(answers=answers)
    assert example.target == task.gold(example, SPEC) == ()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [{"text": "london", "start": 15}],
            "the answer 'london' is not at offset 15 of the context, which has 'ondon '",
        ),
        ([{"text": "london", "start": -1}], "is not at offset -1"),
        ([{"text": "", "start": 1}], "expected an object with text and start"),
        ([{"text": "london"}], "expected an object with text and start"),
        (["london"], "expected an object with text and start"),
        ("london", "expected a list of objects with text and start"),
        ({"text": ["a"], "answer_start": []}, "expected lists `text` and `answer_start` of one length"),
        ([{"text": "london", "start": 14, "context": 1}], "expected an object with text and start"),
    ],
    ids=repr,
)
def test_wrong_answers_are_refused(answers, message):
    with pytest.raises(ValueError, match=message):
        read(answers=answers)


def test_a_context_must_be_a_text_or_texts():
    with pytest.raises(ValueError, match="expected a text or a list of texts"):
        read(context=["a", 3], answers=[])
    answer = {"text": "b", "start": 0, "context": 1}
    assert read(context=["a", "b c"], answers=[answer]).input.all_contexts == ("a", "b c")


def test_windows_overlap_hold_the_question_and_show_all_of_the_context(short):
    (windows,) = task.encode([Input(question="where is anna ?", context=CONTEXT)], short, SPEC)
    assert len(windows) > 1
    assert {len(window) for window in windows[:-1]} == {32}
    question = short.backend.encode("where is anna ?", add_special_tokens=False).ids
    for window in windows:
        _, tokens = window.part
        assert window.encoding.ids[1 : 1 + len(question)].tolist() == question
        assert set(window.encoding.type_ids[tokens]) == {1}
        assert not window.encoding.type_ids[: tokens.start].any()
    shown = [window.encoding.offsets[window.part[1]] for window in windows]
    starts = sorted({int(start) for offsets in shown for start in offsets[:, 0]})
    whole = short.backend.encode(CONTEXT, add_special_tokens=False)
    assert starts == [start for start, _ in whole.offsets]
    stride = min(12, (32 - 3 - len(question)) // 2)
    for before, after in pairwise(shown):
        assert (before[-stride:, 0] == after[:stride, 0]).all() or len(after) < stride  # the stride
    assert not windows[-1].encoding.truncated


def test_beyond_the_last_window_nothing_is_read_and_the_answer_says_so(short):
    few = Spec((), task.Options(stride=12, max_windows=2))
    item = Input(question="where ?", context=f"{CONTEXT} {CONTEXT}")
    (windows,) = task.encode([item], short, few)
    assert (len(windows), windows[-1].encoding.truncated) == (2, True)
    prediction = task.decode(outputs_for(windows, read(answers=[])), windows, item, few)
    assert task.answer(prediction, windows, item, few).truncated


@pytest.mark.parametrize("most", [1, 2])
def test_a_context_that_is_not_read_at_all_counts_as_cut_off(short, most):
    spec = Spec((), task.Options(max_windows=most))
    item = Input(question="where ?", contexts=("anna lives in london .", "maria lives in paris ."))
    ((*windows,),) = task.encode([item], short, spec)
    assert len(windows) == most
    prediction = task.decode(outputs_for(windows, read(answers=[])), windows, item, spec)
    assert task.answer(prediction, windows, item, spec).truncated == (most == 1)


def test_a_long_question_leaves_room_for_the_context(short):
    (windows,) = task.encode([Input(question="where is anna " * 20, context=CONTEXT)], short, SPEC)
    assert min(window.part[1].stop - window.part[1].start for window in windows[:-1]) >= 14


@given(data=st.data())
def test_every_answer_is_found_again_in_the_windows_that_show_it(short, data):
    words = [(match.start(), match.end()) for match in re.finditer(r"\w+", CONTEXT)]
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 1, len(words) - 1)))
    start, end = words[first][0], words[last][1]
    example = read(answers=[{"text": CONTEXT[start:end], "start": start}])
    (windows,) = task.encode([example.input], short, SPEC)
    prediction = task.decode(outputs_for(windows, example), windows, example.input, SPEC)
    assert (prediction.text, prediction.start, prediction.end) == (CONTEXT[start:end], start, end)
    assert prediction.probability > 0.9


def test_of_several_contexts_the_best_answer_is_given_with_its_place(short):
    answer = {"text": "paris", "start": 15, "context": 1}
    example = read(context=["anna lives in london .", "maria lives in paris ."], answers=[answer])
    (windows,) = task.encode([example.input], short, SPEC)
    prediction = task.decode(outputs_for(windows, example), windows, example.input, SPEC)
    given = task.answer(prediction, windows, example.input, SPEC)
    assert (given.answer, given.context, given.start, given.end) == ("paris", 1, 15, 20)


def test_a_span_that_two_windows_show_counts_once(short):
    example = read(answers=[{"text": "paris", "start": CONTEXT.index("paris")}])
    ((*windows,),) = task.encode([example.input], short, SPEC)
    outputs = outputs_for(windows, example, 20.0)
    shown = [
        part for part, window in zip(outputs, windows, strict=True) if task.targets(example, window, SPEC)["start"]
    ]
    assert len(shown) > 1
    shown[1]["start_logits"] *= 0.99
    prediction = task.decode(outputs, windows, example.input, SPEC)
    assert (prediction.text, prediction.score) == ("paris", 40.0)
    assert prediction.probability > 0.99


def test_without_an_answer_in_any_window_there_is_none(short):
    example = read(answers=[])
    (windows,) = task.encode([example.input], short, SPEC)
    prediction = task.decode(outputs_for(windows, example), windows, example.input, SPEC)
    assert task.decide(prediction, SPEC) == ""
    given = task.answer(prediction, windows, example.input, SPEC)
    assert (given.answer, given.start, given.end, given.context) == (None, None, None, None)
    assert given.score > 0.9


def test_an_answer_is_no_longer_than_allowed_and_does_not_end_before_it_starts(short):
    example = read(context="anna lives in london .", answers=[{"text": "anna lives in london", "start": 0}])
    (windows,) = task.encode([example.input], short, SPEC)
    outputs = outputs_for(windows, example)
    limited = Spec((), task.Options(max_answer_tokens=2))
    found = task.decode(outputs, windows, example.input, limited)
    assert len(found.text.split()) <= 2
    outputs[0]["start_logits"], outputs[0]["end_logits"] = outputs[0]["end_logits"], outputs[0]["start_logits"]
    found = task.decode(outputs, windows, example.input, SPEC)
    assert found.start < found.end


def prediction(text, score, none):
    return Prediction(text, score, none, 0.5, 0, 0, len(text))


def test_the_threshold_for_no_answer_is_tuned_for_the_highest_f1():
    """Answerable questions have margins below 2, unanswerable ones above 3."""
    random = np.random.default_rng(0)
    gold, predictions = [], []
    for index in range(100):
        answerable = index % 3 > 0
        margin = random.uniform(-4, 2) if answerable else random.uniform(3, 6)
        gold.append(("paris",) if answerable else ())
        predictions.append(prediction("paris", 0.0, margin))
    options = task.tune(gold, predictions, SPEC)
    assert 2 <= options.no_answer_threshold <= 3
    right = [
        task.decide(row, Spec((), options)) == (texts or ("",))[0] for row, texts in zip(predictions, gold, strict=True)
    ]
    assert all(right)
    fixed = Spec((), task.Options(no_answer_threshold=1.0))
    assert task.tune(gold, predictions, fixed).no_answer_threshold == 1.0


@pytest.mark.parametrize("answerable", [True, False])
def test_a_threshold_exists_if_all_questions_are_alike(answerable):
    gold = [("paris",) if answerable else ()] * 5
    predictions = [prediction("paris", 0.0, margin) for margin in (-1.0, 0.0, 1.0, 2.0, 3.0)]
    options = task.tune(gold, predictions, SPEC)
    assert {task.decide(row, Spec((), options)) for row in predictions} == {"paris" if answerable else ""}


def test_a_context_without_text_leaves_a_threshold_that_json_holds(short):
    ((*windows,),) = task.encode([Input(question="where ?", context=" ")], short, SPEC)
    outputs = [{name: np.zeros(len(part), np.float32) for name in task.OUTPUTS} for part in windows]
    empty = task.decode(outputs, windows, Input(question="where ?", context=" "), SPEC)
    options = task.tune([("paris",), ()], [prediction("paris", 0.0, 1.0), empty], SPEC)
    assert task.Options.model_validate_json(options.model_dump_json()) == options
    spec = Spec((), options)
    assert [task.decide(row, spec) for row in (prediction("paris", 0.0, 1.0), empty)] == ["paris", ""]


def test_predictions_come_back_from_their_arrays():
    rows = [prediction("größe 😀", 1.5, -2.0), Prediction("", 3.0 - task.NO_SPAN_MARGIN, 3.0, 0.0, 0, 0, 0)]
    assert task.load(task.dump(rows)) == rows
    assert task.decide(rows[1], SPEC) == ""
    assert task.load(task.dump([])) == []


def test_offsets_of_answers_are_no_logits():
    far = Prediction("a", 3.0, 1.0, 0.9, 70, 5000, 5001)
    assert max_magnitude(task.dump([far])) == 3.0
    empty = decoded_empty(5000)
    assert max_magnitude(task.dump([empty])) < MAX_LOGIT


def decoded_empty(length):
    """The prediction for a context that has no visible text."""
    window = Features(" " * length, 0, encoding_of(length), part=(0, slice(0, 0)))
    outputs = [{name: np.full(1, 2.0, np.float32) for name in task.OUTPUTS}]
    return task.decode(outputs, [window], Input(question="where ?", context=" " * length), SPEC)


def encoding_of(tokens):
    return Encoding(np.zeros(tokens), np.zeros(tokens), np.zeros((tokens, 2), np.int64), unknown=0, truncated=False)


def test_contexts_without_text_do_not_tune_the_threshold():
    rows = [prediction("paris", 0.0, -5.0), prediction("rome", 0.0, -1.0)]
    gold = [("paris",), ()]
    threshold = task.tune(gold, rows, SPEC).no_answer_threshold
    assert -5 < threshold < -1
    assert task.tune([*gold, ()], [*rows, decoded_empty(3)], SPEC).no_answer_threshold == threshold
    assert task.tune([()], [decoded_empty(3)], SPEC) == SPEC.options


def test_an_input_has_one_context_or_several():
    with pytest.raises(ValueError, match="has context and contexts, expected one of them"):
        Input(question="where ?", context="here", contexts=("there",))


def test_another_span_is_as_far_as_it_is_certain():
    one, other = Prediction("a", 1, 0, 0.9, 0, 0, 1), Prediction("b", 1, 0, 0.8, 0, 4, 5)
    assert task.distance(one, other) == pytest.approx(0.4)
    assert task.distance(one, one) == 0
    unsure = (Prediction("a", 1, 0, 0.31, 0, 0, 1), Prediction("b", 1, 0, 0.30, 0, 4, 5))
    assert task.distance(*unsure) == pytest.approx(0.01)
