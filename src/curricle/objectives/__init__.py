"""Objectives that a stage minimizes, and their losses and projections."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.objectives.base import BoundObjective as BoundObjective
    from curricle.objectives.base import Objective as Objective
    from curricle.objectives.base import Reads as Reads
    from curricle.objectives.base import Sample as Sample
    from curricle.objectives.channel_selection import ChannelSelection as ChannelSelection
    from curricle.objectives.chunked import chunked_cross_entropy as chunked_cross_entropy
    from curricle.objectives.chunked import chunked_divergence as chunked_divergence
    from curricle.objectives.divergences import JSD as JSD
    from curricle.objectives.divergences import ForwardKL as ForwardKL
    from curricle.objectives.divergences import ReverseKL as ReverseKL
    from curricle.objectives.divergences import SquaredError as SquaredError
    from curricle.objectives.divergences import TotalVariation as TotalVariation
    from curricle.objectives.hidden import LayerPair as LayerPair
    from curricle.objectives.hidden import MatchHidden as MatchHidden
    from curricle.objectives.labels import LabelLoss as LabelLoss
    from curricle.objectives.logits import MatchLogits as MatchLogits
    from curricle.objectives.losses import binary_cross_entropy as binary_cross_entropy
    from curricle.objectives.losses import cosine_distance as cosine_distance
    from curricle.objectives.losses import cross_entropy as cross_entropy
    from curricle.objectives.losses import forward_kl as forward_kl
    from curricle.objectives.losses import generalized_jsd as generalized_jsd
    from curricle.objectives.losses import reverse_kl as reverse_kl
    from curricle.objectives.losses import sorted_distance as sorted_distance
    from curricle.objectives.losses import squared_error as squared_error
    from curricle.objectives.losses import total_variation as total_variation
    from curricle.objectives.low_rank_clone import LowRankClone as LowRankClone
    from curricle.objectives.matched_embeddings import MatchEmbeddings as MatchEmbeddings
    from curricle.objectives.matched_embeddings import MatchMargins as MatchMargins
    from curricle.objectives.matched_embeddings import MatchSimilarities as MatchSimilarities
    from curricle.objectives.matched_geometries import MatchCKA as MatchCKA
    from curricle.objectives.matched_geometries import MatchProcrustes as MatchProcrustes
    from curricle.objectives.matched_relations import MatchRelations as MatchRelations
    from curricle.objectives.paired_logits import MatchPairedLogits as MatchPairedLogits
    from curricle.objectives.projections import Gaussian as Gaussian
    from curricle.objectives.projections import Identity as Identity
    from curricle.objectives.projections import Learned as Learned
    from curricle.objectives.projections import Orthogonal as Orthogonal
    from curricle.objectives.projections import Sign as Sign
    from curricle.objectives.temperature import LearnedTemperature as LearnedTemperature
    from curricle.objectives.vocabulary_groups import GroupedProbabilities as GroupedProbabilities
    from curricle.objectives.vocabulary_groups import SortedProbabilities as SortedProbabilities
    from curricle.objectives.vocabulary_groups import token_groups as token_groups
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "base": ("BoundObjective", "Objective", "Reads", "Sample"),
            "chunked": ("chunked_cross_entropy", "chunked_divergence"),
            "divergences": ("ForwardKL", "JSD", "ReverseKL", "SquaredError", "TotalVariation"),
            "matched_embeddings": ("MatchEmbeddings", "MatchMargins", "MatchSimilarities"),
            "matched_geometries": ("MatchCKA", "MatchProcrustes"),
            "matched_relations": ("MatchRelations",),
            "hidden": ("LayerPair", "MatchHidden"),
            "labels": ("LabelLoss",),
            "logits": ("MatchLogits",),
            "low_rank_clone": ("LowRankClone",),
            "losses": (
                "binary_cross_entropy",
                "cosine_distance",
                "cross_entropy",
                "forward_kl",
                "generalized_jsd",
                "reverse_kl",
                "sorted_distance",
                "squared_error",
                "total_variation",
            ),
            "projections": ("Gaussian", "Identity", "Learned", "Orthogonal", "Sign"),
            "channel_selection": ("ChannelSelection",),
            "paired_logits": ("MatchPairedLogits",),
            "temperature": ("LearnedTemperature",),
            "vocabulary_groups": ("GroupedProbabilities", "SortedProbabilities", "token_groups"),
        },
    )
