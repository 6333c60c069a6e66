import pytest
from mmengine.logging import HistoryBuffer


@pytest.fixture(autouse=True)
def own_statistics(monkeypatch):
    """HistoryBuffer keeps one table of methods for all of its instances: what a harmful file adds to it goes again."""
    monkeypatch.setattr(HistoryBuffer, "_statistics_methods", {})
