"""What all files that are refused have in common: one line that names the cause, and the model as it was."""

from contextlib import contextmanager

import pytest
import torch

from mmmsv.checkpoints import AuthorsCheckpoint


@contextmanager
def refused(message):
    with pytest.raises(ValueError, match=message) as error:
        yield
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1200


def assert_refused(model, path, message):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with refused(message):
        AuthorsCheckpoint(path)(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
