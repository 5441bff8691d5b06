"""`python -m ospnext_ms post-train`: adapters trained on rewards; the same command resumes it."""

from ospnext_ms.generation.checks import check_files
from ospnext_ms.generation.prompts import read_prompts
from ospnext_ms.parallel.degrees import check_parallel, world_size
from ospnext_ms.reporting.trackers import check_installed


def post_train(config, interruption=None):
    """Runs what a PostTrainConfig says; returns the paths to look at, none on processes that do not report.

    `interruption`: Interruption that notes signals, None where they are somebody else's.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit.
        FloatingPointError: loss or gradient stopped being finite. RewardError: a reward failed for good.
    """
    check_parallel(config.parallel_config, config.model.dit, world_size())
    check_installed(config.callbacks.trackers)
    check_files(config)
    for path in (config.prompt_file, config.evaluation.prompt_file):
        read_prompts(path)

    from ospnext_ms.post_training.trainer import PolicyTrainer
    from ospnext_ms.runtime import start_run

    return PolicyTrainer(config, *start_run(config), interruption).run()
