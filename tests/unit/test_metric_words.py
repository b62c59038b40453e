"""Names of metrics that say which values are better, and names that leave it open."""

import pytest

from curricle.metric_words import direction_by_name

LOWER = [
    "error_rate",
    "wer",
    "cer",
    "eval_loss",
    "rmse",
    "mae",
    "mse",
    "ppl",
    "ece",
    "brier",
    "kl",
    "fid",
    "nll",
    "perplexity",
    "loss",
    "error",
    "distance",
    "latency",
    "evalLoss",
    "MSELoss",
    "WordErrorRate",
    "val/loss",
    "cross_entropy",
    "loss_per_token",
    "bits_per_byte",
    "top5_error",
    "kl_divergence",
    "brier_score",
    "negative_log_likelihood",
]
HIGHER = [
    "accuracy",
    "val_accuracy",
    "top5_acc",
    "f1",
    "macro_f1",
    "f1_macro",
    "mAP",
    "mIoU",
    "BLEU4",
    "rougeL",
    "recall@10",
    "hits@1",
    "exact_match",
    "log_likelihood",
    "cosine_similarity",
    "AUROC",
    "r2",
    "squad_f1",
]
UNKNOWN = [
    "xyz",
    "score",
    "rate",
    "entropy",
    "neg_mse",
    "f1_drop",
    "accuracy_error",
    "error_correlation",
    "inaccuracy",
    "1-accuracy",
    "one_minus_accuracy",
    "accuracy_gap",
    "loss_reduction",
    "точность",
    "_",
    "🙂",
]


@pytest.mark.parametrize("metric", LOWER)
def test_errors_and_losses_are_better_when_lower(metric: str) -> None:
    assert direction_by_name(metric) == "lower"


@pytest.mark.parametrize("metric", HIGHER)
def test_shares_and_scores_are_better_when_higher(metric: str) -> None:
    assert direction_by_name(metric) == "higher"


@pytest.mark.parametrize("metric", [*UNKNOWN, ""])
def test_other_names_have_no_direction(metric: str) -> None:
    assert direction_by_name(metric) is None
