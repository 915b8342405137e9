"""The server that the tests of the web share, module by module."""

import pytest
from conftest import fresh_copy
from web_client import Web


@pytest.fixture(scope="module")
def web(tmp_path_factory, made_once):
    web = Web(tmp_path_factory.mktemp("web"), fresh_copy(made_once[4]))
    yield web
    web.jobs.close()
