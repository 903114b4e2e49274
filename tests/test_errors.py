import errno
import inspect
import os
import re
from pathlib import Path

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


class NativeError(Exception):
    """What a library in another language raises: a text, and no number."""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_full_disk_is_known_by_the_text_of_a_library_and_behind_another_error(tmp_path, code):
    with pytest.raises(StorageError, match="no space left"), storage_errors(tmp_path):
        raise NativeError(f"I/O error: {os.strerror(code)} (os error {code})")
    with pytest.raises(StorageError, match="no space left"), storage_errors(tmp_path):
        raise NativeError("the data set could not be written") from OSError(code, os.strerror(code))


def test_any_other_error_beside_a_full_disk_stays_as_it_is():
    with pytest.raises(NativeError, match="a defect"), storage_errors(Path("/proc/self")):  # which has no free space
        raise NativeError("a defect")
