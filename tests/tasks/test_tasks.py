import pytest

from deploykit import methods, tasks
from deploykit.errors import MethodError

NAMES = methods.available("task")


def test_a_task_that_is_none_is_refused():
    with pytest.raises(MethodError, match=r"no task is called 'summarization'"):
        tasks.load("summarization")


@pytest.mark.parametrize("name", NAMES)
def test_each_task_provides_the_protocol(name):
    transformers = pytest.importorskip("transformers")
    task = tasks.load(name)
    assert all(hasattr(task, value) for value in vars(tasks.Task)["__annotations__"])
    assert all(callable(getattr(task, name)) for name in vars(tasks.Task) if not name.startswith("_"))
    assert hasattr(transformers, task.AUTO_CLASS)
    assert task.METRICS
    assert task.Answer.model_config["extra"] == "forbid"
    assert all(field.is_required() for field in task.Answer.model_fields.values())
