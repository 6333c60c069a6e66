"""What a model costs: parameters and multiply-adds."""

from .flops import BACKBONES, SHAPES, Classifier, Macs, build_classifier, build_from_config, count, parameters

__all__ = ["BACKBONES", "SHAPES", "Classifier", "Macs", "build_classifier", "build_from_config", "count", "parameters"]
