"""The OUTPUT_DIR of a run on disk: its configs, and how it is evaluated again."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode

from tagclip.config.loading import load_config
from tagclip.errors import ConfigError
from tagclip.evaluation.results import CONFIG, read_metrics
from tagclip.projects import import_projects

__all__ = ["evaluation_command", "is_score", "refuse_score", "run_config", "run_results"]


def run_config(run: Path, dataset: str = "") -> CfgNode:
    """Read the config of a run, and import its projects.

    Args:
        run: its OUTPUT_DIR.
        dataset: whose evaluation the config is of: the training in the folder, or an evaluation on
            another dataset, may have had another one. "" is what the folder is of.

    Raises:
        ConfigError: there is none.
    """
    path = _config_file(run, dataset)
    if not path.is_file():
        raise ConfigError(
            f"{run}: found no config.yaml, expected the OUTPUT_DIR of a run; run tagclip "
            "train or tagclip evaluate"
        )
    cfg = load_config(path)
    import_projects(cfg.PROJECTS)
    return cfg


def _config_file(run: Path, dataset: str) -> Path:
    own = _result(run, dataset).with_name(CONFIG)
    # Earlier versions kept none beside the results.
    return own if dataset and own.is_file() else run / CONFIG


def _result(run: Path, dataset: str) -> Path:
    return run / "inference" / dataset / "metrics.json"


def run_results(run: Path) -> list[Path]:
    """The metrics.json of every dataset."""
    return sorted(run.glob("inference/*/metrics.json"))


def is_score(path: Path) -> bool:
    """Whether a metrics.json is of ``tagclip score``; one that is missing or damaged is of none."""
    try:
        return "predictions" in read_metrics(path)["run"]
    except ConfigError:
        return False


def refuse_score(folder: str) -> None:
    """Refuse an OUTPUT_DIR that is the output of ``tagclip score``, as that one refuses a run's.

    Args:
        folder: OUTPUT_DIR; "" is none.

    Raises:
        ConfigError: it holds a score, whose config and results would be replaced.
    """
    try:
        results = run_results(Path(folder)) if folder else []
    # No name of a folder: who writes there says so.
    except (OSError, ValueError):
        return
    if any(map(is_score, results)):
        raise ConfigError(
            f"OUTPUT_DIR {folder}: found the output of tagclip score, whose config and results "
            "would be replaced, expected that of a run; name another OUTPUT_DIR"
        )


def evaluation_command(run: Path, cfg: CfgNode, dataset: str, *options: str) -> str:
    """Return what evaluates the same weights again, with config keys and values at its end.

    Of a score no model is known: then it is what scores again.

    Args:
        run: OUTPUT_DIR.
        cfg: see `run_config`.
        dataset: registered name.
        options: keys and values.
    """
    result = _result(run, dataset)
    if is_score(result):
        return f"tagclip score PREDICTIONS --dataset {dataset} --output {run}"
    words = ["tagclip evaluate --config-file", str(_config_file(run, dataset))]
    if (run / "last_checkpoint").is_file() and not _is_of_evaluation(result):
        words.append("--resume")
    elif not cfg.MODEL.WEIGHTS:
        words.append("--weights CHECKPOINT")
    if dataset not in cfg.DATASETS.TEST:
        words.append(f"DATASETS.TEST \"('{dataset}',)\"")
    return " ".join([*words, "OUTPUT_DIR", str(run), *options])


def _is_of_evaluation(path: Path) -> bool:
    """Whether a metrics.json is of weights that were named, not of the training in its folder."""
    try:
        return read_metrics(path)["run"].get("iterations", 0) is None
    except ConfigError:
        return False
