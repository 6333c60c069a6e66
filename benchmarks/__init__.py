"""Measure the selective scan beside other implementations; README.md lists the scripts."""
