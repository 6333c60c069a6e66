"""The random numbers of an epoch."""

import random
from types import SimpleNamespace

import numpy as np
import torch

from mmmsv.engine.hooks import SeedEpochHook, seed_epoch


def _draws(seed: int, iteration: int, **randomness: bool) -> tuple:
    runner = SimpleNamespace(seed=seed, iter=iteration, cfg={"randomness": randomness})
    SeedEpochHook().before_train_epoch(runner)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_epochs_draw_what_seed_and_iteration_say(monkeypatch):
    assert _draws(0, 12) == _draws(0, 12)
    others = [_draws(0, 12), _draws(0, 13), _draws(1, 12)]
    monkeypatch.setattr(seed_epoch, "get_rank", lambda: 1)
    assert _draws(0, 12) == others[0]
    others.append(_draws(0, 12, diff_rank_seed=True))
    for generator in zip(*others, strict=True):
        assert len(set(generator)) == len(others)
