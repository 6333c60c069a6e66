"""Support older versions of torch and MMEngine. A file goes when the versions that need it are no longer supported.

- ``torch_versions``: functions that torch named differently, or did not have. It goes when torch 2.7 is the oldest one
  supported. It imports torch alone, since :mod:`mmmsv.kernels` uses it; hence this file imports nothing.
- ``weights_only``: ``torch.load(weights_only=True)`` as torch 2.6 does it. Two of its lines remain when that is the
  oldest torch supported.
- ``mmengine_checkpoints``: what MMEngine's checkpoints hold, for ``weights_only``. It goes when MMEngine's own
  checkpoints load that way. It imports torch and NumPy alone, since ``import mmmsv`` imports it.
- ``plain_checkpoints``: MMEngine's checkpoints as plain data, for tools that have imported nothing of this package. It
  goes at the same time.
"""
