"""A detector and a segmentor in the authors' layout, tested through mim by name: fetched, converted, and as good."""

import io
import json

import pytest
import torch

from mmmsv.checkpoints import released
from mmmsv.checkpoints.conversion import to_authors_file
from tests.test_checkpoints.server import serving

from .runs import MMDET, MMSEG, mim

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(
    ("trained", "name"),
    [(MMDET, "vmamba_t_1x"), (MMSEG, "vmamba_t_160k")],
    ids=["mmdet", "mmseg"],
    indirect=["trained"],
)
def test_has_the_metrics_of_the_checkpoint_that_it_was_written_from(trained, name, tmp_path):
    """The file of the small model lies where the mirror has the authors' file of that name."""
    content = io.BytesIO()
    torch.save(to_authors_file(trained.final)[0], content)
    with serving(tmp_path / "served") as server:
        server.put(released.read_index(released.MODEL_INDEX)[name].url, content.getvalue())
        environment = {"MMMSV_MIRROR": server.url, "TORCH_HOME": str(tmp_path / "cache")}
        run = mim("test", trained.task, tmp_path, "--checkpoint", f"authors://{name}", environment=environment)
    assert run.status == 0, run.output
    assert f"downloading {server.url}/github.com/" in run.output
    assert f"converted from the authors' layout: authors://{name} (state_dict): mmmsv.MSVMamba" in run.output
    (report,) = tmp_path.glob("*/*.json")
    tested, validated = json.loads(report.read_text()), trained.log[-1]
    metrics = {metric: validated[metric] for metric in trained.task.metrics}
    assert {metric: tested[metric] for metric in metrics} == metrics
    assert max(metrics.values()) > 0
