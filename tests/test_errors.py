import errno
import inspect
import re

import pytest

from deploykit import errors
from deploykit.errors import DeploykitError, InputError, StorageError, storage_errors

TREE = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, DeploykitError) and found.__module__ == errors.__name__
]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_full_disk_is_a_storage_error(tmp_path, code):
    message = (
        r"^no space left on the disk while writing /disk/model\.onnx\. Free some space .* finished stages are kept"
    )
    with pytest.raises(StorageError, match=message), storage_errors(tmp_path):
        raise OSError(code, "no", "/disk/model.onnx")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS], ids=errno.errorcode.get)
def test_a_refused_write_is_a_storage_error(tmp_path, code):
    message = rf"^no permission for {re.escape(str(tmp_path))}\. Give this user access to it, or .*`output:`"
    with pytest.raises(StorageError, match=message) as caught, storage_errors(tmp_path):
        raise OSError(code, "no")
    assert caught.value.__cause__.errno == code


def test_other_errors_of_the_system_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "nothing").read_text()


def test_without_an_error_nothing_happens(tmp_path):
    with storage_errors(tmp_path):
        (tmp_path / "file").write_text("x")
    assert (tmp_path / "file").read_text() == "x"


def test_the_tree_in_the_docstring_is_the_real_one():
    drawn = dict(re.findall(r"(\w+Error)\s+(\d|[a-z])", errors.__doc__))
    assert set(drawn) == {found.__name__ for found in TREE}
    assert len(TREE) > 10
    for found in TREE:
        code = drawn[found.__name__]
        assert not code.isdigit() or found.exit_code == int(code)


@pytest.mark.parametrize("found", TREE, ids=lambda found: found.__name__)
def test_exit_codes(found):
    expected = 2 if issubclass(found, InputError) else {"GateError": 1}.get(found.__name__, 3)
    assert found.exit_code == expected
