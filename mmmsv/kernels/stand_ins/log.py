"""What the log says of stand-ins."""

import logging

_logger = logging.getLogger("mmmsv.kernels")
_logged: set[str] = set()


def log_once(name: str, what: str) -> None:
    """Say once that ``what``, of this package, stands in for the module ``name``."""
    if name not in _logged:
        _logged.add(name)
        _logger.warning("%s is not installed: %s stands in for it", name, what)
