"""Count the parameters and multiply-adds of a model."""

from .flops import BACKBONES, SHAPES, Classifier, Macs, build_classifier, build_from_config, count, parameters

__all__ = ["BACKBONES", "SHAPES", "Classifier", "Macs", "build_classifier", "build_from_config", "count", "parameters"]
