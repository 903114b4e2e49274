import numpy as np
import pytest
import torch
from rows import classification_loss

from deploykit.modeling import callbacks, finetuning
from deploykit.modeling.callbacks import Deadline
from deploykit.modeling.finetuning import fit
from deploykit.modeling.options import FitOptions

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"batch_size": 16, "learning_rate": 3e-3, "bf16": "off"}


@pytest.fixture
def clock(monkeypatch):
    """Stands still but for what a test adds."""
    found = {"now": 1000.0}
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: found["now"])
    return found


def ticking(clock, seconds):
    """A loss that takes time where the model learns, and counts."""
    calls, loss = [], classification_loss()

    def found(outputs, labels, num_items_in_batch=None):
        if outputs["logits"].requires_grad:
            clock["now"] += seconds
            calls.append(clock["now"])
        return loss(outputs, labels, num_items_in_batch)

    return found, calls


def rates(curve):
    return [point["learning_rate"] for point in curve if point["split"] == "train"]


def test_minutes_must_be_more_than_none():
    with pytest.raises(ValueError, match="minutes"):
        FitOptions(minutes=0)


def test_a_fit_ends_with_its_minutes_and_its_rate_has_come_down(clock, tiny_encoder, problem_of, tmp_path):
    loss, calls = ticking(clock, seconds=10)
    options = FitOptions(epochs=50, minutes=1, warmup=0.2, **QUICK)
    model = tiny_encoder()
    curve = fit(model, problem_of(count=64), options, loss, tmp_path)  # four steps an epoch
    assert len(calls) == 6
    np.testing.assert_allclose(rates(curve), 3e-3 * np.array([0, 5 / 6, 5 / 6, 5 / 8, 5 / 12, 5 / 24]), rtol=1e-6)
    assert [point["epoch"] for point in curve if point["split"] == "validation"] == [1, 1.5]
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_minutes_that_are_not_needed_change_nothing(clock, tiny_encoder, problem_of, tmp_path):
    found = []
    for index, minutes in enumerate((None, 60)):
        model = tiny_encoder()
        loss, calls = ticking(clock, seconds=1)
        options = FitOptions(epochs=2, minutes=minutes, **QUICK)
        curve = fit(model, problem_of(count=64), options, loss, tmp_path / f"{index}")
        found.append((len(calls), model.state_dict(), rates(curve)))
    assert found[0][0] == found[1][0] == 8
    np.testing.assert_allclose(found[0][2], found[1][2])
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], msg=name)


class KilledError(Exception):
    """Stands for a kill."""


def test_a_run_that_was_killed_has_only_the_rest_of_the_time(clock, tiny_encoder, problem_of, tmp_path):
    options = FitOptions(epochs=50, minutes=1.5, **QUICK)
    loss, calls = ticking(clock, seconds=10)

    def dies(outputs, labels, num_items_in_batch=None):
        if len(calls) == 5:
            raise KilledError
        return loss(outputs, labels, num_items_in_batch)

    with pytest.raises(KilledError):
        fit(tiny_encoder(), problem_of(count=64), options, dies, tmp_path)
    assert (tmp_path / "checkpoint-4" / callbacks.USED_TIME_FILE).read_text() == "40.0"

    clock["now"] += 10_000  # while it is dead
    loss, calls = ticking(clock, seconds=10)
    fit(tiny_encoder(), problem_of(count=64), options, loss, tmp_path)
    assert len(calls) == 5


def test_a_fit_whose_time_is_over_is_not_gone_on_with(clock, tiny_encoder, problem_of, tmp_path, monkeypatch):
    options, model = FitOptions(epochs=50, minutes=1, **QUICK), tiny_encoder()
    curve = fit(model, problem_of(count=64), options, ticking(clock, seconds=10)[0], tmp_path)
    monkeypatch.setattr(finetuning.Trainer, "train", lambda *_, **__: pytest.fail("it went on"))
    again = tiny_encoder(seed=5)
    assert fit(again, problem_of(count=64), options, classification_loss(), tmp_path) == curve
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [None, "", "12."])
def test_a_checkpoint_whose_time_was_not_written_down_has_used_none(content, clock, tmp_path):
    if content is not None:
        (tmp_path / callbacks.USED_TIME_FILE).write_text(content)
    assert Deadline(1, tmp_path).used_share() == (0.2 if content == "12." else 0.0)
