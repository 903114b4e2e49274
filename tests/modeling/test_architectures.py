import re

import pytest
import transformers
from models import VARIANTS

from deploykit.errors import ModelError
from deploykit.modeling.architectures import ARCHITECTURES, architecture_of, is_known

KEEP = " To keep the model as it is, set prune: null."


def test_models_of_another_type_are_refused_with_the_list_of_known_ones():
    message = f"models of type 'bart' cannot be pruned: known are {', '.join(ARCHITECTURES)}.{KEEP}"
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        architecture_of(transformers.BartConfig())


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups: 1, inner_group_num: 1; this one has 2, 1"),
        ("albert", {"inner_group_num": 3}, "num_hidden_groups: 1, inner_group_num: 1; this one has 1, 3"),
        (
            "marian",
            {"share_encoder_decoder_embeddings": False},
            "share_encoder_decoder_embeddings: True; this one has False",
        ),
    ],
)
def test_a_model_that_its_row_does_not_stand_for_is_refused(kind, values, found):
    config = transformers.AutoConfig.for_model(kind, **values)
    assert not is_known(config)
    with pytest.raises(ModelError, match=f"^{re.escape(f'{kind} models are pruned only with {found}.{KEEP}')}$"):
        architecture_of(config)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_row_is_a_type_of_the_library_and_is_tested(kind):
    assert architecture_of(transformers.AutoConfig.for_model(kind)) is ARCHITECTURES[kind]
    assert any(kind == found for found, _ in VARIANTS)


def test_the_table_holds_encoders_decoders_and_both():
    assert {"albert", "bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"} <= set(ARCHITECTURES)
    assert {"gpt2", "llama", "marian", "t5"} <= set(ARCHITECTURES)
