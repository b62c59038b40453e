"""Direction of a metric by the words of its name.

A name has a direction if it is one of the field's names or is composed of their words, such as
`eval_loss` or `WordErrorRate`. Other names have none: a wrong guess would call the worst run the
best.

Design: the head of an English compound stands last, so `error_rate` is an error and `f1_drop` is
not an F1. Words before the head may be anything (`squad_f1`) but a negation (`neg_mse`).
"""

import re
from types import MappingProxyType

from curricle.metrics import METRICS, Direction


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


LOWER = _vocabulary(
    "error errors loss losses nll perplexity ppl surprisal rmse mse mae mape smape rmsle msle "
    "nrmse nmse medae mase wer cer ter eer der hter ece mce brier crps kl kld jsd fid fvd fad kid "
    "lpips mmd emd wasserstein divergence distance latency regret fpr fnr far frr bpc bpb bpd "
    "bits cross_entropy logloss chamfer hausdorff discrepancy"
)
"""Words of metrics of which lower values are better."""
HIGHER = _vocabulary(
    "accuracy acc f1 fbeta precision recall auc auroc auprc aucpr roc ap map mrr ndcg bleu "
    "sacrebleu rouge rougel rougelsum meteor chrf bertscore cider spice iou miou dice jaccard "
    "psnr ssim r2 mcc matthews kappa pearson spearman kendall correlation likelihood reward "
    "throughput agreement similarity specificity sensitivity tpr tnr match hits"
)
"""Words of metrics of which higher values are better."""
NEUTRAL = _vocabulary(
    "rate score value mean avg average median macro micro weighted top at per token tokens word "
    "words character characters char byte bytes step ms seconds percent log l lsum sum "
    "coefficient eval evaluation val valid validation test dev train heldout final squared "
    "absolute"
)
"""Words behind a metric's head that change nothing."""
TURNING = _vocabulary(
    "neg negative negated minus inverse inverted inv reciprocal non no not without anti delta "
    "diff one complement"
)
"""Words before a metric's head that may turn its direction."""
COMPLEMENT = re.compile(r"\s*1\s*[-\u2212\u2013]")
"""Beginning of names such as `1-accuracy`."""
PHRASES = MappingProxyType(
    {
        "cross_entropy": "loss",
        "negative_log_likelihood": "nll",
        "neg_log_likelihood": "nll",
        "exact_match": "accuracy",
        "word_error_rate": "wer",
    }
)
"""Metrics of several words, and one word of the same direction."""


def direction_by_name(metric: str) -> Direction | None:
    """Return which values of a metric are better: that of a built-in one, else by its words.

    Args:
        metric: Name of the metric.

    Returns:
        The direction; None if the words leave it open.
    """
    if metric in METRICS:
        return METRICS[metric].better
    if COMPLEMENT.match(metric):
        return None
    words = _words(metric)
    # `loss_per_token` and `recall@10` are named by a head with its unit or rank behind it.
    while words and words[-1] not in LOWER | HIGHER and _is_neutral(words[-1]):
        words.pop()
    if not words or TURNING & set(words):
        return None
    head: Direction | None = _direction(words[-1])
    directions = {_direction(word) for word in words} - {None}
    # `accuracy_error` and `error_correlation` mix two metrics.
    return head if len(directions) == 1 else None


def is_plain(metric: str) -> bool:
    """Return whether every word of a metric's name is known, so that none can turn its direction.

    `eval_loss` and `error_rate` are plain; `time_to_accuracy` and `forgetting_accuracy` are not.

    Args:
        metric: Name of the metric.
    """
    return all(_direction(word) is not None or _is_neutral(word) for word in _words(metric))


def _words(metric: str) -> list[str]:
    """Return the lower-case words of a name: `evalLoss`, `eval-loss` and `eval/loss` are alike."""
    words: list[str] = []
    for chunk in re.findall(r"[^\W_]+", metric):
        # Acronyms such as mAP and mIoU are no camel case.
        is_word = _direction(chunk.lower()) is not None
        camel = r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|[A-Z]|\d+"
        pieces = [chunk] if is_word else re.findall(camel, chunk) or [chunk]
        words += [piece.lower() for piece in pieces]
    text = "_".join(words)
    for phrase, word in PHRASES.items():
        text = re.sub(rf"(?<![^_]){phrase}(?![^_])", word, text)
    return text.split("_") if text else []


def _direction(word: str) -> Direction | None:
    """Return the direction of a word, with or without a rank or order behind it (`bleu4`)."""
    stem = word if word in LOWER | HIGHER else word.rstrip("0123456789")
    return "lower" if stem in LOWER else "higher" if stem in HIGHER else None


def _is_neutral(word: str) -> bool:
    return word in NEUTRAL or word.isdecimal()
