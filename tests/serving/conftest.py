"""What tests of the model server share."""

from __future__ import annotations

import pytest

from tests.serving.saved_models import SavedModels, write_all


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> SavedModels:
    """Tiny SavedModels, each a base directory that holds version ``1``; copy one before changing it."""
    return write_all(tmp_path_factory.mktemp("saved_models"))
