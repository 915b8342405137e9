"""Requests made up from the server's own description: whatever comes, no 5xx.

FUZZ_EXAMPLES=1000 tries as many bodies for each address.
"""

import json
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis.checks import not_a_server_error
from web_client import Web, listening

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
QUIET = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def web(tmp_path, pipe):
    web = Web(tmp_path, pipe, limit=10_000)
    real_generate = web.pipe.generate

    def generate_little(asked, image=None, mask=None, *rest, **more):
        """With everything that was asked for but the size and the number, which only take time."""
        small = asked.replace(steps=1, width=64, height=64, num_images=1, hires_scale=1.0)
        return real_generate(small, image, mask, *rest, **more)

    web.pipe.generate = generate_little
    yield web
    web.jobs.close()


def fuzz(web, examples):
    """That many made-up requests to each address, over a socket."""
    with listening(web.app) as port:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) > 20
        for operation in operations:

            @settings(max_examples=examples, **QUIET)
            @given(case=operation.as_strategy())
            def try_it(case):
                case.call_and_validate(checks=[not_a_server_error])

            try_it()


def test_no_request_breaks_the_server(web):
    fuzz(web, EXAMPLES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_of_very_many_breaks_the_server(web):
    fuzz(web, 20 * EXAMPLES)


HOSTILE = ["../../x", "/etc/passwd", "a\0b", "..", "~", "C:\\x", "\ud800"]
NAMES = strategies.text(max_size=40) | strategies.sampled_from(HOSTILE)


@settings(max_examples=5 * EXAMPLES, **QUIET)
@given(name=NAMES, strength=strategies.text(max_size=8))
def test_no_name_breaks_it_or_is_found(web, name, strength):
    for body in ({"prompt": f"<lora:{name}:{strength}>"}, {"override_settings": {"sd_model_checkpoint": name + "."}}):
        headers = {"Content-Type": "application/json"}
        answer = web.client.post("/sdapi/v1/txt2img", content=json.dumps(body), headers=headers)
        # A tag with a bracket in its name is no tag but a part of the prompt.
        assert answer.status_code == 422 or (answer.status_code == 200 and "prompt" in body)
