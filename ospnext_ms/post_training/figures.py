"""The figures of a post-training iteration."""

import numpy as np


def update_figures(scores, advantages, updates, with_kl):
    """Figures of an iteration's rewards and updates, {name: number}.

    `rescoring_difference` is how far the log-probabilities of the first optimiser step are from those of the scoring;
    `ratio_deviation_before` is that of the first optimiser step, whose ratios are taken before anything has changed;
    `ratio_deviation_after` that of the last one (null with a single step). `kl` is null where it is not computed.
    """
    total = scores.total[~np.isnan(scores.total)]
    # None where no video has the part: JSON has no NaN.
    within = [float(np.nanmean(values)) if (~np.isnan(values)).any() else None for values in scores.parts.values()]
    figures = {
        "reward_mean": float(total.mean()) if len(total) else None,
        "reward_std": float(total.std()) if len(total) else None,
        **{f"reward/{name}": mean for name, mean in zip(scores.parts, within, strict=True)},
        **{f"failed/{name}": count for name, count in scores.failed.items()},
        "zero_spread_share": advantages.zero_spread / advantages.groups,
        "incomplete_groups": advantages.incomplete,
        "updates": len(updates),
    }
    if updates:
        ratios = [update["ratios"] for update in updates]
        figures |= {
            "policy_loss": float(np.mean([update["loss"] for update in updates])),
            "gradient_norm": float(np.mean([update["norm"] for update in updates])),
            "clip_factor": float(np.mean([update["factor"] for update in updates])),
            "learning_rate": updates[-1]["rate"],
            "rescoring_difference": updates[0]["rescoring"],
            "ratio_deviation_before": _deviation(ratios[0]),
            "ratio_deviation_after": _deviation(ratios[-1]) if len(ratios) > 1 else None,
            "clip_fraction": float(np.mean([(np.abs(update["ratios"] - 1) > update["clip"]).mean()
                                            for update in updates if update["ratios"].size] or [0.0])),
            "kl": float(np.mean([update["kls"].mean() for update in updates if update["kls"].size] or [0.0]))
                  if with_kl else None,
        }
    return figures


def _deviation(ratios):
    return float(np.abs(ratios - 1).max()) if ratios.size else 0.0
