"""Scores Parquet files with a registered version: Parquet in, Parquet out, row for row.

python -m jobs.score --model models:/demo@champion --input LOGS --output SCORES
    (--config configs/demo.yaml | --tracking-uri URI) [--resume | --overwrite]
    [--summary FILE] [scoring.key=value ray.key=value …]

LOGS is a file, a folder or a pattern ('logs/dt=2026-11-*/*.parquet'), SCORES a folder; both may be
URIs. The output appears when it is complete. Without a flag nothing may be there yet; --resume goes
on with the same job after it was stopped, for whatever reason, and is right for a first start too;
--overwrite discards what is unfinished and replaces what is complete.
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.common import add_summary_argument, run_job
from jobs.summary import check_summary, write_summary
from pipeline.config import ConfigError, load_experiment
from pipeline.config.load import with_absolute_paths
from pipeline.config.scoring_job import load_scoring
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return run_job(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Runs the job with parsed arguments."""
    if (args.config is None) == (args.tracking_uri is None):
        raise ConfigError("give --config FILE or --tracking-uri URI, which say where the model is")
    if args.resume and args.overwrite:
        raise ConfigError("give either --resume or --overwrite")
    check_summary(args.summary)
    # Imported late: a wrong command line answers at once.
    from pipeline.data.remote import RetryPolicy
    from pipeline.registry.uris import tracking_uri
    from pipeline.scoring.place import Mode
    from pipeline.scoring.score import ScoringJob, score

    if args.config is not None:
        experiment = with_absolute_paths(load_experiment(args.config, args.overrides))
        config, ray, uri = experiment.scoring, experiment.ray, tracking_uri(experiment)
        faults = experiment.data.faults
        retry = RetryPolicy(faults.read_attempts, faults.read_timeout_seconds)
    else:
        settings = load_scoring(args.overrides)
        config, ray, uri, retry = settings.scoring, settings.ray, args.tracking_uri, RetryPolicy()
    mode: Mode = "resume" if args.resume else "overwrite" if args.overwrite else "new"
    console = RunConsole()
    job = ScoringJob(uri, args.model, args.input, args.output, config, retry, mode)
    scored = score(job, ray, console)
    summary = scored.summary()
    write_summary(args.summary, summary)
    if scored.results:
        console.note(
            f"{scored.rows:,} rows in {scored.files:,} file(s): {scored.output} "
            f"({summary['rows_per_second']:,.0f} rows/s, {scored.seconds_in_all:.1f} s in all)"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.score", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--model", required=True, metavar="URI", help="models:/NAME@ALIAS or models:/NAME/VERSION"
    )
    parser.add_argument("--input", required=True, metavar="LOCATION", help="Parquet files")
    parser.add_argument("--output", required=True, metavar="LOCATION", help="a folder")
    parser.add_argument(
        "--config", metavar="FILE", help="an experiment, for its MLflow and section"
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow, without an experiment")
    parser.add_argument("--resume", action="store_true", help="go on with the same job")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings; with --tracking-uri of scoring and ray alone",
    )
    add_summary_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
