"""``mim train --launcher slurm`` as the documentation writes it, on a machine that has no slurm."""

import shlex

import pytest

from .runs import ENVIRONMENT, IN_FORK, MMDET, mim

pytestmark = pytest.mark.end_to_end


def test_srun_is_asked_for_the_gpus(tmp_path, monkeypatch):
    asked = tmp_path / "asked"
    srun = tmp_path / "srun"
    srun.write_text(f'#!/bin/sh\necho "$@" > {shlex.quote(str(asked))}\n')
    srun.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{tmp_path}:{ENVIRONMENT['PATH']}")
    # The fork's mim takes a version of click with which it trips over an option that is not given.
    options = ["--srun-args=--exclusive"] if IN_FORK else []
    launch = ["--launcher", "slurm", "--gpus", "16", "--gpus-per-node", "8", "--partition", "NAME"]
    run = mim("train", MMDET, tmp_path, *launch, *options)
    assert run.status == 0, run.output
    words = asked.read_text().split()
    assert {"--gres=gpu:8", "--ntasks=16", "--ntasks-per-node=8", str(MMDET.config)} <= set(words)
    assert words[:2] == ["-p", "NAME"]
