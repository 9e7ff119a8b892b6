"""Arrow bodies and answers, through the whole of the service."""

import pyarrow as pa
import pytest

from pipeline.serving.arrow_stream import MEDIA_TYPE as ARROW
from tests.serving.test_service import CHAMPION, ask, body_of, serve

pytestmark = pytest.mark.slow


def test_arrow_bodies_and_answers_hold_the_scores_of_json(versions):
    rows = versions.registry.rows(200)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    body, sent = sink.getvalue().to_pybytes(), {"content-type": ARROW}

    async def scenario(service, _):
        wanted = (await ask(service, body=body_of(rows)))[1]
        assert await ask(service, body=body, headers=sent) == (200, wanted)
        status, table = await ask(service, body=body, headers=sent | {"accept": ARROW})
        assert status == 200
        assert table.to_pydict() == wanted["scores"]
        found = {name.decode(): text.decode() for name, text in table.schema.metadata.items()}
        assert found == {key: wanted[key] for key in ("name", "model", "version")}
        assert (await ask(service, body=body[:-8], headers=sent))[0] == 400
        assert (await ask(service, body=body))[1]["error"]["code"] == "not_json"

    shadow = {"name": "next", "uri": "models:/demo/2", "shadow": 1.0}
    serve(versions, scenario, models=[CHAMPION, shadow])
