"""Stands in for the package of this name of mamba-ssm."""
