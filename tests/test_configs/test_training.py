"""What training with the bundled configs needs."""

import pytest
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm

from tests.test_engine.small_runs import CONFIG, SMALL, small_classifier, small_run


def test_one_epoch_is_enough(tmp_path):
    """The bundled schedules may be cut short, as for a first try."""
    runner = small_classifier(tmp_path, param_scheduler=Config.fromfile(CONFIG).param_scheduler)
    runner.train()
    assert runner.epoch == 1


@pytest.mark.parametrize("library", ["mmdet", "mmseg", "mmpretrain"])
def test_every_parameter_gets_a_gradient(tmp_path, library):
    """So that distributed training needs no ``find_unused_parameters``; nor does SyncBN touch the backbone."""
    runner = small_run(SMALL / f"{library}.py", tmp_path)
    model = runner.model
    data = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
    loss.backward()
    assert [name for name, param in model.named_parameters() if param.requires_grad and param.grad is None] == []

    before = [type(module) for module in model.backbone.modules()]
    assert [type(module) for module in convert_sync_batchnorm(model, "torch").backbone.modules()] == before
