"""Synthetic data: sparse parity and grammars."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.data.synthetic.derivations import Derivations as Derivations
    from curricle.data.synthetic.derivations import Sampler as Sampler
    from curricle.data.synthetic.grammar_statistics import StringStatistics as StringStatistics
    from curricle.data.synthetic.grammar_statistics import num_derivations as num_derivations
    from curricle.data.synthetic.grammar_statistics import string_statistics as string_statistics
    from curricle.data.synthetic.grammars import Grammar as Grammar
    from curricle.data.synthetic.grammars import shipped as shipped
    from curricle.data.synthetic.grammars import written as written
    from curricle.data.synthetic.parity import ParityStream as ParityStream
    from curricle.data.synthetic.pcfg import CausalStrings as CausalStrings
    from curricle.data.synthetic.pcfg import LabeledStrings as LabeledStrings
    from curricle.data.synthetic.pcfg import MaskedStrings as MaskedStrings
    from curricle.data.synthetic.pcfg import labeled_strings as labeled_strings
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "derivations": ("Derivations", "Sampler"),
            "grammar_statistics": ("StringStatistics", "num_derivations", "string_statistics"),
            "grammars": ("Grammar", "shipped", "written"),
            "parity": ("ParityStream",),
            "pcfg": ("CausalStrings", "LabeledStrings", "MaskedStrings", "labeled_strings"),
        },
    )
