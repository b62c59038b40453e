"""Probes: measurements of a model without influence on its training."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.probes.channels import output_channels as output_channels
    from curricle.probes.channels import output_energies as output_energies
    from curricle.probes.correlations import monomial_correlations as monomial_correlations
    from curricle.probes.correlations import output_correlations as output_correlations
    from curricle.probes.evaluators import with_probes as with_probes
    from curricle.probes.forward_passes import Probe as Probe
    from curricle.probes.forward_passes import hidden_states as hidden_states
    from curricle.probes.forward_passes import numbered_taps as numbered_taps
    from curricle.probes.ngrams import ngram_distances as ngram_distances
    from curricle.probes.ngrams import ngram_reliance as ngram_reliance
    from curricle.probes.nonterminals import NonterminalProbe as NonterminalProbe
    from curricle.probes.nonterminals import nonterminal_accuracies as nonterminal_accuracies
    from curricle.probes.nonterminals import nonterminal_probe as nonterminal_probe
    from curricle.probes.ranks import student_ranks as student_ranks
    from curricle.probes.ranks import tap_ranks as tap_ranks
    from curricle.probes.representations import effective_rank as effective_rank
    from curricle.probes.representations import linear_accuracy as linear_accuracy
    from curricle.probes.representations import linear_cka as linear_cka
    from curricle.probes.representations import linear_probe as linear_probe
    from curricle.probes.representations import tap_similarity as tap_similarity
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "channels": ("output_channels", "output_energies"),
            "correlations": ("monomial_correlations", "output_correlations"),
            "evaluators": ("with_probes",),
            "ngrams": ("ngram_distances", "ngram_reliance"),
            "nonterminals": ("NonterminalProbe", "nonterminal_accuracies", "nonterminal_probe"),
            "forward_passes": ("Probe", "hidden_states", "numbered_taps"),
            "ranks": ("student_ranks", "tap_ranks"),
            "representations": (
                "effective_rank",
                "linear_accuracy",
                "linear_cka",
                "linear_probe",
                "tap_similarity",
            ),
        },
    )
