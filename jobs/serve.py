"""Serves registered versions over HTTP: POST /score, GET /health, GET /metrics.

python -m jobs.serve --config configs/demo.yaml [section.key=value …]
python -m jobs.serve --model models:/demo@champion --tracking-uri URI [serving.key=value …]
"""

import argparse
import sys
import threading
from collections.abc import Sequence

from jobs.common import run_job
from pipeline.config import ConfigError, load_experiment
from pipeline.config.service import load_service
from pipeline.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return run_job(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    if (args.config is None) == (args.model is None):
        raise ConfigError("give --config FILE, or --model URI and --tracking-uri URI")
    if (args.model is None) != (args.tracking_uri is None):
        raise ConfigError("--model and --tracking-uri go together")
    # Imported late: a wrong command line answers at once.
    from pipeline.registry.uris import tracking_uri
    from pipeline.serving.launch import running_service, served_models

    if args.config is not None:
        experiment = load_experiment(args.config, args.overrides)
        config, ray = experiment.serving, experiment.ray
        models = served_models(config, experiment.mlflow.model_name or experiment.name)
        uri = tracking_uri(experiment)
    else:
        settings = load_service(args.model, args.overrides)
        config, ray = settings.serving, settings.ray
        models, uri = list(config.models), args.tracking_uri
    console = RunConsole()
    console.note(f"starting {len(models)} model(s) on {config.replicas} replica(s)")
    stopped = threading.Event()
    with running_service(config, models, uri, ray, stopped) as service:
        for name, version in service.versions.items():
            console.note(f"{name}: {version.model} version {version.version}")
        console.note(f"serving at {service.url} (POST /score, GET /health, GET /metrics)")
        stopped.wait()
        console.note("stopping: requests in flight are finished")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", metavar="FILE", help="the experiment (YAML)")
    parser.add_argument("--model", metavar="URI", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow server or store of --model")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that replace those of the file; with --model of serving and ray alone",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
