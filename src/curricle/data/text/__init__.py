"""Text as batches: corpora, tokenizers and windows of tokens."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.data.text.corpora import Documents as Documents
    from curricle.data.text.corpora import open_corpus as open_corpus
    from curricle.data.text.own_texts import text_stream as text_stream
    from curricle.data.text.paired import PairedTexts as PairedTexts
    from curricle.data.text.paired import paired_texts as paired_texts
    from curricle.data.text.token_store import TokenStore as TokenStore
    from curricle.data.text.token_store import Vocabulary as Vocabulary
    from curricle.data.text.token_store import open_store as open_store
    from curricle.data.text.tokenizing import open_or_build as open_or_build
    from curricle.data.text.tokenizing import open_tokenizer as open_tokenizer
    from curricle.data.text.tokenizing import train_tokenizer as train_tokenizer
    from curricle.data.text.windows import CausalWindows as CausalWindows
    from curricle.data.text.windows import MaskedWindows as MaskedWindows
    from curricle.data.text.windows import Masking as Masking
    from curricle.data.text.windows import evaluation_batches as evaluation_batches
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "corpora": ("Documents", "open_corpus"),
            "own_texts": ("text_stream",),
            "paired": ("PairedTexts", "paired_texts"),
            "token_store": ("TokenStore", "Vocabulary", "open_store"),
            "tokenizing": ("open_or_build", "open_tokenizer", "train_tokenizer"),
            "windows": ("CausalWindows", "MaskedWindows", "Masking", "evaluation_batches"),
        },
    )
