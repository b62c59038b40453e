"""Models that can be read at taps and stopped early."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.models.cnn import CNN as CNN
    from curricle.models.cnn import CNNSpec as CNNSpec
    from curricle.models.ensemble import Ensemble as Ensemble
    from curricle.models.huggingface import HuggingFaceSpec as HuggingFaceSpec
    from curricle.models.huggingface import PretrainedSpec as PretrainedSpec
    from curricle.models.mlp import MLP as MLP
    from curricle.models.mlp import MLPSpec as MLPSpec
    from curricle.models.sentence_encoder import SentenceEncoder as SentenceEncoder
    from curricle.models.sentence_encoder import SentenceEncoderSpec as SentenceEncoderSpec
    from curricle.models.tapped import Activations as Activations
    from curricle.models.tapped import Forward as Forward
    from curricle.models.tapped import Place as Place
    from curricle.models.tapped import TappedModel as TappedModel
    from curricle.models.vocabularies import common_vocabulary as common_vocabulary
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "ensemble": ("Ensemble",),
            "huggingface": ("HuggingFaceSpec", "PretrainedSpec"),
            "cnn": ("CNN", "CNNSpec"),
            "mlp": ("MLP", "MLPSpec"),
            "sentence_encoder": ("SentenceEncoder", "SentenceEncoderSpec"),
            "tapped": ("Activations", "Place", "Forward", "TappedModel"),
            "vocabularies": ("common_vocabulary",),
        },
    )
