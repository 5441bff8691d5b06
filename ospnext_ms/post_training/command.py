"""`python -m ospnext_ms post-train`: adapters trained on rewards; the same command resumes it."""

from ospnext_ms.parallel.degrees import check_parallel, world_size
from ospnext_ms.pipelines.requests import check_files, read_prompts
from ospnext_ms.post_training.config import PostTrainConfig
from ospnext_ms.yaml_reader import add_config_options, load_config


def add_arguments(parser):
    """Options of `post-train`."""
    add_config_options(parser, "yaml_configs/post_train", "policy.clip=0.001")


def run(arguments):
    """Runs `post-train` with parsed options and returns the exit code."""
    config = load_config(PostTrainConfig, arguments.config, arguments.overrides)
    for path in post_train(config):
        print(path)
    return 0


def post_train(config):
    """Runs what a PostTrainConfig says; returns the paths to look at, none on processes that do not report.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit.
        FloatingPointError: loss or gradient stopped being finite. RewardError: a reward failed for good.
    """
    check_parallel(config.parallel_config, config.model.dit, world_size())
    check_files(config)
    for path in (config.prompt_file, config.evaluation.prompt_file):
        read_prompts(path)

    from ospnext_ms.pipelines.runtime import start_run
    from ospnext_ms.post_training.trainer import PolicyTrainer

    return PolicyTrainer(config, *start_run(config)).run()
