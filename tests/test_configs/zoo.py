"""The configs, and the archs that the sizes in their names stand for."""

from benchmarks.zoo.configs import CONFIGS, ROOT, build, load, name

__all__ = ["ARCHS", "CONFIGS", "ROOT", "build", "load", "name"]

ARCHS = {
    "msvmamba_n": "nano",
    "msvmamba_m": "micro",
    "msvmamba_t": "tiny",
    "msvmamba_v3_t": "v3_tiny",
    "msvmamba_v3_s": "v3_small",
    "msvmamba_v3_b": "v3_base",
    "vmamba_v1_t": "tiny",
    "vmamba_v1_s": "small",
    "vmamba_v1_b": "base",
    "vmamba_t": "v2_tiny_s1l8",
    "vmamba_s": "v2_small_s2l15",
    "vmamba_b": "v2_base_s2l15",
    "vmamba_t_s2l5": "v2_tiny_s2l5",
    "vmamba_s_s1l20": "v2_small_s1l20",
    "vmamba_b_s1l20": "v2_base_s1l20",
}
