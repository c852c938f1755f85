"""What every test needs: its own cache folder, so that nothing is left with the user."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Commands keep finished work in a folder of this session (child processes too)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield
