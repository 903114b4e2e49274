import json
from dataclasses import replace
from itertools import count
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
from rows import inputs_of, spec_of

from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, MethodError, ModelError
from deploykit.inference import predictor as module
from deploykit.inference.predictor import Predictor, group_by_length

LABELS = ("O", "B-NAME", "I-NAME")


@pytest.fixture
def found(tmp_path, tiny_artifact):
    return tiny_artifact(tmp_path / "text")


@pytest.fixture
def predictor(found):
    return Predictor.load(found, cores=1)


@pytest.fixture
def weights(tmp_path, tiny_graph):
    return tiny_graph(tmp_path / "again.onnx")


@pytest.fixture
def tagger(tmp_path, tiny_artifact):
    return Predictor.load(tiny_artifact(tmp_path / "tags", task="token-classification", labels=LABELS), cores=1)


class Spy:
    """An engine that remembers the shapes of its batches."""

    def __init__(self, engine):
        self.engine, self.execution, self.shapes = engine, engine.execution, []

    def run(self, batch):
        self.shapes.append(batch["input_ids"].shape)
        return self.engine.run(batch)

    def shape(self, rows, tokens):
        return rows, tokens


def test_an_unknown_engine_is_refused(found):
    with pytest.raises(MethodError, match=r"no engine is called 'onnxruntme' \(did you mean 'onnxruntime'\?\)"):
        Predictor.load(found, 1, Execution(engine="onnxruntme"))


def test_an_artifact_without_a_tokenizer_is_refused(found):
    found.file("tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no fast tokenizer"):
        Predictor.load(found, 1)


@pytest.mark.parametrize(
    ("names", "fits"),
    [
        ({"0": "positive", "1": "negative"}, False),
        ({"0": "negative", "1": "positive", "2": "other"}, False),
        ({"1": "positive", "0": "negative"}, True),
        ({}, True),
    ],
    ids=["swapped", "one-more", "the-same", "none"],
)
def test_labels_of_the_configuration_are_those_of_the_manifest(names, fits, tmp_path, tiny_artifact):
    content = json.dumps({"id2label": names})
    found = tiny_artifact(tmp_path / "named", fill=lambda folder: (folder / "config.json").write_text(content))
    if fits:
        assert Predictor.load(found, 1).spec.labels == ("negative", "positive")
    else:
        with pytest.raises(
            ArtifactError, match=r"config\.json gives the outputs the labels \[.*\], the manifest \['neg"
        ):
            Predictor.load(found, 1)


def test_it_carries_what_the_manifest_says(found, tiny_artifact, tmp_path):
    other = tiny_artifact(tmp_path / "other", labels=("x", "y", "z"), max_tokens=9)
    predictor = Predictor.load(other, cores=2)
    assert (predictor.spec.labels, predictor.tokenizer.max_tokens) == (("x", "y", "z"), 9)
    assert predictor.engine.execution == Execution(threads=2)


def test_scores_are_those_of_the_graph_in_the_order_given(predictor, weights, sentences):
    texts = [text for text, _ in sentences[:100]]
    expected = [weights[encoding.ids].sum(axis=0) for encoding in predictor.tokenizer.encode(texts)]
    for batch_tokens in (1, 64, 4096):
        scores = predictor.predict(texts, batch_tokens=batch_tokens)
        assert {row.shape for row in scores} == {(1, 2)}
        np.testing.assert_allclose(np.concatenate(scores), expected, rtol=1e-5, atol=1e-5)


def test_pairs_reach_the_graph(predictor, weights):
    (scores,) = predictor.predict(inputs_of(["the film"], ["is great"]))
    (encoding,) = predictor.tokenizer.encode(["the film"], ["is great"])
    assert len(encoding) == 7
    np.testing.assert_allclose(scores[0], weights[encoding.ids].sum(axis=0), rtol=1e-5)


def decoded(tagger, texts, side):
    """Predictions for short texts in one batch."""
    inputs = inputs_of(texts)
    encoded = tagger.encode(inputs)
    outputs = tagger.run([part for (part,) in encoded], side)
    return [tagger.decode([arrays], parts, item) for arrays, parts, item in zip(outputs, encoded, inputs, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_units_of_padded_rows_are_found_on_either_side(tagger, tiny_graph, tmp_path, side):
    weights = tiny_graph(tmp_path / "again.onnx", "token-classification", 3)
    texts = ["peter !", "the friends of Anna told me about it"]
    encodings = tagger.tokenizer.encode(texts)
    short, long = decoded(tagger, texts, side)
    assert (short.shape, long.shape) == ((2, 3), (8, 3))
    pieces = tagger.tokenizer.backend.encode(texts[0]).tokens
    assert pieces[1:4] == ["p", "##e", "##t"]
    np.testing.assert_array_equal(short, weights[encodings[0].ids[[1, -2]]])
    np.testing.assert_array_equal(long, weights[encodings[1].ids[1:-1]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_to_the_shape_that_the_engine_runs_well(tagger, side):
    engine = Spy(tagger.engine)
    engine.shape = lambda rows, tokens: (rows + 2, 9000)  # more than the model reads
    texts = ["a great film", "the plot is weak, and the end too"]
    padded = decoded(replace(tagger, engine=engine), texts, side)
    assert engine.shapes == [(4, tagger.tokenizer.max_tokens)]
    for one, other in zip(padded, decoded(tagger, texts, side), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_an_engine_that_compiles_shapes_meets_the_small_ones_ahead(predictor):
    engine = Spy(predictor.engine)
    one = replace(predictor, engine=engine)
    assert one.warm(64, 10) == len(engine.shapes) == 0  # it runs all shapes alike
    engine.shape = lambda rows, tokens: (-(-rows // 4) * 4, -(-tokens // 16) * 16)
    assert one.warm(256, 10) == len(engine.shapes)
    assert engine.shapes == sorted(engine.shapes, key=lambda shape: shape[0] * shape[1])
    assert set(engine.shapes) == {(4, 16), (8, 16), (12, 16), (16, 16), (4, 32), (8, 32), (4, 48), (4, 64)}
    assert one.warm(256, -1) == 0


def test_nothing_to_predict(predictor):
    assert predictor.predict([]) == predictor.answers([]) == []


def test_long_texts_are_read_in_windows_that_share_batches_with_other_texts(predictor, tagger, sentences):
    texts = [
        "film " * 70,
        *(text for text, _ in sentences[:3]),
        "the film is great " * 200,
        "anna lives in london " * 30,
    ]
    for found in (predictor, tagger):
        inputs = inputs_of(texts)
        encoded = found.encode(inputs)
        assert [len(parts) for parts in encoded] == [2, 1, 1, 1, 16, 3]
        together = found.predict(inputs)
        for item, parts, prediction in zip(inputs, encoded, together, strict=True):
            alone = found.decode([found.run([part])[0] for part in parts], parts, item)
            np.testing.assert_allclose(prediction, alone, rtol=1e-4, atol=1e-4)
        answers = found.answers(inputs)
        assert [(answer.windows, answer.truncated) for answer in answers] == [
            (len(parts), parts[-1].encoding.truncated) for parts in encoded
        ]
        assert [answer.truncated for answer in answers] == [False] * 4 + [True, False]
        assert answers == [found.task.answer(*each, found.spec) for each in zip(together, encoded, inputs, strict=True)]


def test_the_manifest_says_in_how_many_windows_a_text_is_read(tiny_artifact, tmp_path):
    found = tiny_artifact(tmp_path / "other", task_options={"max_windows": 2})
    predictor = Predictor.load(found, 1)
    assert [len(parts) for parts in predictor.encode(inputs_of(["film " * 1000, "film"]))] == [2, 1]
    assert replace(predictor, spec=spec_of(predictor.spec.labels, max_windows=3)).max_characters == (
        predictor.max_characters * 3 // 2
    )


def test_a_text_stands_for_an_input(predictor):
    one, two = predictor.predict(["a film", *inputs_of(["a film"])])
    np.testing.assert_array_equal(one, two)


def test_no_padded_batch_is_larger_than_allowed_and_short_texts_do_not_wait_for_long_ones(predictor, sentences):
    spy = Spy(predictor.engine)
    texts = [text for text, _ in sentences] + ["film " * 60]
    replace(predictor, engine=spy).predict(texts, batch_tokens=60)
    sizes = [rows * tokens for rows, tokens in spy.shapes]
    assert sum(rows for rows, _ in spy.shapes) == len(texts)
    assert [tokens for _, tokens in spy.shapes] == sorted(tokens for _, tokens in spy.shapes)
    assert max(sizes[:-1]) <= 60
    assert spy.shapes[-1] == (1, 62)


def test_a_progress_bar_sees_every_batch(predictor):
    seen = []

    def track(parts):
        seen.extend(parts)
        return parts

    predictor.predict(["film", "the film", "the film is great"], batch_tokens=8, track=track)
    assert seen == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([5], [[0]]),
        ([50, 3, 3], [[1, 2], [0]]),
        ([4, 4, 4], [[0], [1, 2]]),
        ([2, 6, 2, 2], [[0, 2, 3], [1]]),
        ([1, 1, 1, 3], [[0, 1, 2], [3]]),  # which would triple
    ],
)
def test_batches(lengths, expected):
    assert group_by_length(lengths, 8) == expected


def test_batches_take_as_many_rows_as_the_engine_takes_without_more():
    def by_fours(rows, tokens):
        return -(-rows // 4) * 4, -(-tokens // 8) * 8

    assert list(map(len, group_by_length([5] * 23, 100, by_fours))) == [11, 12]  # the first one is filled to 12
    assert list(map(len, group_by_length([5] * 8 + [9] * 4, 96, by_fours))) == [
        8,
        4,
    ]  # at 16 tokens, eight were too many


def test_streams_share_the_work_and_answers_keep_their_order(found, sentences):
    texts = [text for text, _ in sentences]
    alone = Predictor.load(found, 1).predict(texts, batch_tokens=60)
    engine = Spy(Predictor.load(found, 1, Execution(streams=2)).engine)
    together, calls, run = Barrier(2), count(), engine.run

    def meet(batch):
        if next(calls) < 2:
            together.wait(timeout=10)  # fails unless two batches are in the engine at once
        return run(batch)

    engine.run = meet
    shared = replace(Predictor.load(found, 1), engine=engine).predict(texts, batch_tokens=60)
    assert next(calls) > 2
    np.testing.assert_allclose(np.stack(alone), np.stack(shared), rtol=1e-6)


@pytest.mark.parametrize(
    ("threads", "streams", "cores", "expected"),
    [(2, 1, 8, (8, 1)), (1, 2, 8, (1, 8)), (1, 1, 4, (4, 1)), (1, 2, 1, (1, 1))],
)
def test_another_number_of_cores_goes_where_it_went_before(threads, streams, cores, expected):
    there = Execution(threads=threads, streams=streams).with_cores(cores)
    assert (there.threads, there.streams) == expected


def test_threads_are_started_for_several_batches_at_once_and_kept(found, monkeypatch):
    pools = []

    class Pool(module.ThreadPoolExecutor):
        def __init__(self, *how, **named):
            pools.append(self)
            super().__init__(*how, **named)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    one, two = (Predictor.load(found, 2, Execution(streams=streams)) for streams in (1, 2))
    texts = ["a film", "the plot was awful and i saw it with my friends"] * 9
    alone = one.predict(texts)
    assert (two.predict(["a film"])[0] == one.predict(["a film"])[0]).all()
    assert pools == []
    for _ in range(2):
        np.testing.assert_array_equal(two.predict(texts, batch_tokens=16), alone)
    assert len(pools) == 1


def test_outputs_are_decoded_as_soon_as_an_input_is_complete(predictor, sentences):
    events = []

    class Noting(Spy):
        def run(self, batch):
            events.append("run")
            return super().run(batch)

    def decode(*arguments):
        events.append("decode")
        return predictor.task.decode(*arguments)

    task = SimpleNamespace(OUTPUTS=predictor.task.OUTPUTS, encode=predictor.task.encode, decode=decode)
    task.Input = predictor.task.Input
    texts = inputs_of([*(text for text, _ in sentences), f"{sentences[0][0]} " * 20])
    watched = replace(predictor, task=task, engine=Noting(predictor.engine))
    for prediction, expected in zip(watched.predict(texts, 64), predictor.predict(texts, 64), strict=True):
        np.testing.assert_allclose(prediction, expected, atol=1e-5)
    last_run = len(events) - events[::-1].index("run")
    assert 0 < events[:last_run].count("decode") < events.count("decode") == len(texts)
