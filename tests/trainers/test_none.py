import pytest
import torch
from pydantic import ValidationError

from deploykit.trainers import Trained, none


def test_there_is_nothing_to_choose():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        none.Options(epochs=1)


def test_the_model_must_be_fine_tuned_and_stays_as_it_is(tmp_path, tiny_encoder, problem_of):
    assert none.NEEDS_FINE_TUNED
    model = tiny_encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert none.train(model, problem_of(count=16), none.Options(), tmp_path) == Trained(model, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []
