"""The browser of the tests of pages."""

from tests.pipeline.conftest import browser

__all__ = ["browser"]
