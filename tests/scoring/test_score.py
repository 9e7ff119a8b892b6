"""The job without Ray: values against RowScorer's, what is refused, what a restart repeats."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import flip_data_page, rewrite, truncate
from s3_server import s3_server
from scored_output import output_rows, run_here, visible

from pipeline.registry.uris import TrackingError
from pipeline.scoring.errors import ScoringError
from pipeline.scoring.item import note_attempt

pytestmark = pytest.mark.slow
SCORES = ["score_click", "score_buy", "score_spent"]


class StoppedError(RuntimeError):
    pass


def stopped_after(count):
    """A runner that breaks off, as a killed job does."""

    def run(model, task, items):
        for number, result in enumerate(run_here(model, task, items)):
            if number == count:
                raise StoppedError
            yield result

    return run


def expected(scoring, rows, version="1"):
    return scoring.scorers[version].score_table(rows)


def scores_of(table):
    return np.stack([table[name].to_numpy() for name in SCORES], axis=1)


def test_scores_are_those_of_the_model_and_keys_are_kept(scoring, logs, tmp_path):
    folder, rows = logs
    output = tmp_path / "scores"
    options = {"keep": ["row", "user"], "rows_per_file": 400, "batch_rows": 150}
    done = scoring.score(folder, output, **options)
    found = output_rows(output)
    assert found.column_names == ["row", "user", *SCORES, "dt"]
    assert found["row"].to_pylist() == rows["row"].to_pylist()
    assert found["user"].to_pylist() == rows["user"].to_pylist()
    np.testing.assert_allclose(scores_of(found), expected(scoring, rows), rtol=1e-6, atol=1e-7)
    assert (done.rows, done.pieces, done.files) == (1200, 4, 4)
    manifest = json.loads((output / "_manifest.json").read_text())
    assert manifest["model"] == "models:/shop/1"
    assert manifest["score_columns"] == SCORES
    assert {file["path"]: file["rows"] for file in manifest["inputs"]} == {
        "dt=1/a.parquet": 500,
        "dt=2/a.parquet": 700,
        "dt=2/b.parquet": 0,
    }
    assert [file["name"] for file in manifest["outputs"]] == visible(output)
    first = output / manifest["outputs"][0]["name"]
    assert first.parent.name == "dt=1"
    metadata = pq.read_schema(first).metadata
    assert metadata[b"model"] == b"models:/shop/1"
    assert metadata[b"input"] == b"dt=1/a.parquet"
    # Nothing is left of the work.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs", "scores"]
    assert sorted(p.name for p in output.iterdir()) == ["_manifest.json", "dt=1", "dt=2"]


def test_all_columns_are_kept_unless_named_and_types_stay(scoring, logs, tmp_path):
    folder, rows = logs
    rewrite(
        folder / "dt=1/a.parquet",
        lambda t: t.set_column(0, "user", t["user"].cast(pa.large_string()).dictionary_encode()),
    )
    scoring.score(folder / "dt=1", tmp_path / "scores")
    found = output_rows(tmp_path / "scores")
    first = rows.slice(0, 500)
    assert found.select(rows.column_names[1:]).equals(first.drop_columns("user"))
    assert pa.types.is_dictionary(found["user"].type)
    assert found["user"].to_pylist() == first["user"].to_pylist()
    np.testing.assert_allclose(scores_of(found), expected(scoring, first), rtol=1e-6, atol=1e-7)


def test_partitions_and_a_row_group_larger_than_a_file(scoring, logs, tmp_path):
    folder, rows = logs
    options = {"keep": ["row"], "partition_by": ["device"], "rows_per_file": 150}
    scoring.score(f"{folder}/dt=*/a.parquet", tmp_path / "scores", **options)
    found = pq.read_table(tmp_path / "scores").to_pylist()
    found = sorted(found, key=lambda row: row["row"])
    assert [row["row"] for row in found] == list(range(1200))
    assert [row["device"] for row in found] == rows["device"].to_pylist()
    scores = np.array([[row[name] for name in SCORES] for row in found])
    np.testing.assert_allclose(scores, expected(scoring, rows), rtol=1e-6, atol=1e-7)
    names = visible(tmp_path / "scores")
    # 200 rows of a group make files of 150 and 50 rows, cut by device.
    assert any("-000000-001-" in name for name in names)
    assert {name.split("/")[1] for name in names} == {
        "device=phone",
        "device=desk",
        "device=tv",
        "device=__HIVE_DEFAULT_PARTITION__",
    }


def test_a_stopped_job_goes_on_where_it_was(scoring, logs, tmp_path):
    folder, _ = logs
    options = {"keep": ["row"], "rows_per_file": 200}
    scoring.score(folder, tmp_path / "whole", **options)
    output, working = tmp_path / "scores", tmp_path / "_scores.unfinished"
    with pytest.raises(StoppedError):
        scoring.score(folder, output, runner=stopped_after(3), **options)
    assert not output.exists()
    # Of what was done one file is damaged and one record is cut short: both pieces are done again.
    damaged, cut = visible(working)[:2]
    (working / damaged).write_bytes((working / damaged).read_bytes()[:-9] + b"123456789")
    (working / "_scoring/item-000001.json").write_text("{")
    (working / "dt=1/.a-000009-000-00000000.parquet.1.partial").touch()
    seen = []

    def counting(model, task, items):
        seen.extend(item.number for item in items)
        return run_here(model, task, items)

    done = scoring.score(folder, output, "resume", runner=counting, **options)
    # The fourth piece was done and recorded, only its result was never seen.
    assert seen == [0, 1, 4, 5, 6]
    assert (done.pieces, done.pieces_before) == (7, 2)
    assert cut in visible(output)
    assert visible(output) == visible(tmp_path / "whole")
    assert output_rows(output).equals(output_rows(tmp_path / "whole"))
    assert not working.exists()
    # A scheduler that starts it once more does no harm.
    again = scoring.score(folder, output, "resume", runner=None, **options)
    assert (again.pieces_before, again.results) == (7, ())
    first = output / visible(output)[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(ScoringError, match=r"is complete, but dt=1/a-000000.* bytes instead of"):
        scoring.score(folder, output, "resume", runner=None, **options)


def test_another_job_is_refused(scoring, logs, tmp_path):
    folder, _ = logs
    output = tmp_path / "scores"
    options = {"keep": ["row"], "rows_per_file": 200}
    with pytest.raises(StoppedError):
        scoring.score(folder, output, runner=stopped_after(1), **options)
    with pytest.raises(ScoringError, match=r"unfinished job with models:/shop/1 .* --resume goes"):
        scoring.score(folder, output, **options)
    with pytest.raises(ScoringError, match=r"is there; --overwrite discards it"):
        scoring.score(folder, output, model="models:/shop/2", **options)
    refused = r"the model was models:/shop/1, now it is models:/shop/2\. .*--model models:/shop/1"
    with pytest.raises(ScoringError, match=refused):
        scoring.score(folder, output, "resume", model="models:/shop/2", **options)
    with pytest.raises(ScoringError, match=r"scoring.keep was \['row'\], now it is \['user'\]"):
        scoring.score(folder, output, "resume", **(options | {"keep": ["user"]}))
    shutil.copy(folder / "dt=1/a.parquet", folder / "dt=1/c.parquet")
    with pytest.raises(ScoringError, match=r"input file dt=1/c.parquet is new"):
        scoring.score(folder, output, "resume", **options)
    (folder / "dt=1/c.parquet").unlink()
    # Fewer or more actors and rows at a time make no other job.
    scoring.score(folder, output, "resume", actors=1, batch_rows=10, **options)
    with pytest.raises(ScoringError, match=r"is complete, with scores of models:/shop/1"):
        scoring.score(folder, output, **options)


def test_overwriting_keeps_the_old_output_until_the_new_is_there(scoring, logs, tmp_path):
    folder, rows = logs
    output = tmp_path / "scores"
    scoring.score(folder, output)
    before = visible(output)
    new = {"model": "models:/shop/2", "rows_per_file": 200}
    with pytest.raises(StoppedError):
        scoring.score(folder, output, "overwrite", runner=stopped_after(2), **new)
    assert visible(output) == before
    scoring.score(folder, output, "resume", **new)
    assert not set(visible(output)) & set(before)
    np.testing.assert_allclose(
        scores_of(output_rows(output)), expected(scoring, rows, "2"), rtol=1e-6, atol=1e-7
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs", "scores"]


def test_foreign_files_are_left_alone(scoring, logs, tmp_path):
    folder, _ = logs
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    for mode in ("new", "resume", "overwrite"):
        with pytest.raises(ScoringError, match="holds files that are no output of this job"):
            scoring.score(folder, tmp_path / "mine", mode)
    with pytest.raises(ScoringError, match="lies in the input's folder"):
        scoring.score(folder, folder / "scores")
    assert (tmp_path / "mine/thesis.txt").exists()


def without(name):
    return lambda table: table.drop_columns(name)


def as_text(table):
    lists = pa.array([["x"]] * len(table))
    return table.set_column(table.schema.get_field_index("price"), "price", lists)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda path: truncate(path), {}, r"dt=1/a.parquet: cannot be opened as Parquet .*restore"),
        (
            lambda path: path.write_text("row,user\n"),
            {},
            r"dt=1/a.parquet: cannot be opened as Parquet",
        ),
        (
            lambda path: flip_data_page(path, 1, 3),
            {},
            r"dt=1/a.parquet: row groups 0 to 2 cannot be decoded .*; restore the file",
        ),
        (
            lambda path: rewrite(path, without("price")),
            {},
            r"dt=1/a.parquet: has no column 'price', which the model reads; write it into",
        ),
        (
            lambda path: rewrite(path, as_text),
            {},
            r"dt=1/a.parquet: column 'price' .*list<.* does not convert to double.*as it was in tr",
        ),
        (
            lambda path: None,
            {"keep": ["row", "rwo"]},
            r"has no column 'rwo', which scoring.keep names; it has buy, click",
        ),
        (lambda path: None, {"partition_by": ["price"]}, r"'price' of .*partition_by holds double"),
        (lambda path: None, {"prefix": ""}, r"has a column 'click', as a score is called; choose"),
    ],
)
def test_bad_input_is_named(scoring, logs, tmp_path, change, options, words):
    folder, _ = logs
    change(folder / "dt=1/a.parquet")
    with pytest.raises(ScoringError, match=words):
        scoring.score(folder, tmp_path / "scores", **options)
    assert not (tmp_path / "scores").exists()


def test_a_value_that_cannot_be_used_is_named_by_row(scoring, logs, tmp_path):
    folder, _ = logs

    def words_among_numbers(table):
        prices = ["1.5"] * len(table)
        prices[437] = "cheap"
        return table.set_column(table.schema.get_field_index("price"), "price", pa.array(prices))

    rewrite(folder / "dt=1/a.parquet", words_among_numbers)
    with pytest.raises(ScoringError, match=r"dt=1/a.parquet: column 'price' .*cheap.*correct the"):
        scoring.score(folder, tmp_path / "scores")


def test_a_file_that_changes_meanwhile_is_found(scoring, logs, tmp_path):
    folder, rows = logs

    def changing(model, task, items):
        pq.write_table(rows, folder / "dt=2/a.parquet")
        return run_here(model, task, items)

    with pytest.raises(ScoringError, match=r"dt=2/a.parquet: was changed while the job ran"):
        scoring.score(folder, tmp_path / "scores", runner=changing)


def test_rows_that_got_lost_fail_the_job(scoring, logs, tmp_path):
    folder, _ = logs

    def forgetful(model, task, items):
        return run_here(model, task, items[:-1])

    words = r"dt=2/a.parquet: has 700 rows, its scores have 600; nothing was published"
    with pytest.raises(ScoringError, match=words):
        scoring.score(folder, tmp_path / "scores", runner=forgetful, rows_per_file=200)
    assert not (tmp_path / "scores").exists()


def test_a_piece_that_kills_its_actors_is_given_up(scoring, logs, tmp_path):
    folder, _ = logs

    def dying(model, task, items):
        for _ in range(4):
            note_attempt(task, items[1])
        yield from ()

    words = r"dt=1/a.parquet: 3 actors died while they scored rows 400 to 499, .*batch_rows"
    with pytest.raises(ScoringError, match=words):
        scoring.score(folder, tmp_path / "scores", runner=dying, rows_per_file=400)
    # Started again, it gets as many attempts, and nothing of them is left in the end.
    scoring.score(folder, tmp_path / "scores", "resume", rows_per_file=400)
    assert not (tmp_path / "scores/_scoring").exists()


def test_no_such_version(scoring, logs, tmp_path):
    with pytest.raises(TrackingError, match="models:/shop@nobody"):
        scoring.score(logs[0], tmp_path / "scores", model="models:/shop@nobody")


def test_an_object_store(scoring, logs, tmp_path):
    folder, rows = logs
    options = {"keep": ["row"], "partition_by": ["device"], "rows_per_file": 200}
    with s3_server() as server:
        for path in ("dt=1/a.parquet", "dt=2/a.parquet"):
            with server.filesystem.open_output_stream(f"ranking-logs/logs/{path}") as file:
                file.write((folder / path).read_bytes())
        source, output = server.uri("logs"), server.uri("out/scores", credentials=True)

        def pickled(model, task, items):
            return run_here(model, pickle.loads(pickle.dumps(task)), items)

        def read():
            found = pq.read_table("ranking-logs/out/scores", filesystem=server.filesystem)
            return sorted(found.to_pylist(), key=lambda row: row["row"])

        with pytest.raises(StoppedError):
            scoring.score(source, output, runner=stopped_after(2), **options)
        assert "_manifest.json" not in str(server.files("out"))
        # A file that was put before its piece was recorded, by a job that is then replaced.
        scoring.score(source, output, "overwrite", runner=pickled, **options)
        first = server.files("out/scores")
        assert first[0] == "_manifest.json"
        assert not any("_scoring" in name for name in first)
        found = read()
        assert [row["row"] for row in found] == list(range(1200))
        scores = np.array([[row[name] for name in SCORES] for row in found])
        np.testing.assert_allclose(scores, expected(scoring, rows), rtol=1e-6, atol=1e-7)
        new = options | {"model": "models:/shop/2"}
        with pytest.raises(StoppedError):
            scoring.score(source, output, "overwrite", runner=stopped_after(2), **new)
        assert set(first) < set(server.files("out/scores"))  # still whole
        scoring.score(source, output, "resume", **new)
        assert set(server.files("out/scores")) & set(first) == {"_manifest.json"}
        found = read()
        assert [row["row"] for row in found] == list(range(1200))
        scores = np.array([[row[name] for name in SCORES] for row in found])
        np.testing.assert_allclose(scores, expected(scoring, rows, "2"), rtol=1e-6, atol=1e-7)
