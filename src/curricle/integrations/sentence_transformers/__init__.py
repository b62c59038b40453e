"""Batches of texts for models of sentence-transformers.

`curricle.distill` takes and returns these models as they are.
"""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.integrations.sentence_transformers.text_collator import (
        TextCollator as TextCollator,
    )
else:
    __all__, __getattr__, __dir__ = public_names(__name__, {"text_collator": ("TextCollator",)})
