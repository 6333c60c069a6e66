"""Name the types in configs."""

from collections.abc import Mapping


def type_name(config: Mapping) -> str:
    """Return the name of the ``type`` of a config, without a scope, whether it is given by name or as a class."""
    kind = config.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")
