"""Knowledge distillation with a curriculum, for PyTorch and Hugging Face models.

    result = curricle.distill(student, teacher, curriculum, data, evaluation=held_out)

A curriculum comes from a strategy: `extraction`, `progressive`, `one_shot` or `from_labels`.
Models are plain modules or Hugging Face models; `tapped` names the layers of any other module.
`stream` makes training data of a `DataLoader`.

Every name is imported on first use (`curricle.lazy`). Packages such as `curricle.objectives` have
more names.
"""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.curriculum.automatic import auto as auto
    from curricle.curriculum.durations import Duration as Duration
    from curricle.curriculum.durations import UnlessExplained as UnlessExplained
    from curricle.curriculum.durations import UntilMetric as UntilMetric
    from curricle.curriculum.durations import UntilPlateau as UntilPlateau
    from curricle.curriculum.hidden_layers import hidden_first as hidden_first
    from curricle.curriculum.hidden_layers import joint as joint
    from curricle.curriculum.initialization import AutoStart as AutoStart
    from curricle.curriculum.initialization import LeastSquaresStart as LeastSquaresStart
    from curricle.curriculum.initialization import PrincipalStart as PrincipalStart
    from curricle.curriculum.initialization import RandomStart as RandomStart
    from curricle.curriculum.initialization import SelectionStart as SelectionStart
    from curricle.curriculum.layer_pairs import evenly_spaced_pairs as evenly_spaced_pairs
    from curricle.curriculum.stages import Curriculum as Curriculum
    from curricle.curriculum.stages import PricedLabels as PricedLabels
    from curricle.curriculum.stages import Stage as Stage
    from curricle.curriculum.strategies import extraction as extraction
    from curricle.curriculum.strategies import from_labels as from_labels
    from curricle.curriculum.strategies import low_rank_clone as low_rank_clone
    from curricle.curriculum.strategies import one_shot as one_shot
    from curricle.curriculum.strategies import progressive as progressive
    from curricle.data.batch import Batch as Batch
    from curricle.data.dataloaders import stream as stream
    from curricle.data.streams import Stream as Stream
    from curricle.data.synthetic.parity import ParityStream as ParityStream
    from curricle.data.text.own_texts import text_stream as text_stream
    from curricle.data.text.paired import PairedTexts as PairedTexts
    from curricle.data.text.paired import paired_texts as paired_texts
    from curricle.errors import CurricleError as CurricleError
    from curricle.metrics import Metric as Metric
    from curricle.models.ensemble import Ensemble as Ensemble
    from curricle.models.mlp import MLP as MLP
    from curricle.models.sentence_encoder import SentenceEncoder as SentenceEncoder
    from curricle.models.vocabularies import common_vocabulary as common_vocabulary
    from curricle.models.wrapping import tapped as tapped
    from curricle.objectives.hidden import LayerPair as LayerPair
    from curricle.objectives.hidden import MatchHidden as MatchHidden
    from curricle.objectives.labels import LabelLoss as LabelLoss
    from curricle.objectives.logits import MatchLogits as MatchLogits
    from curricle.objectives.low_rank_clone import LowRankClone as LowRankClone
    from curricle.objectives.matched_embeddings import MatchEmbeddings as MatchEmbeddings
    from curricle.objectives.matched_embeddings import MatchMargins as MatchMargins
    from curricle.objectives.matched_embeddings import MatchSimilarities as MatchSimilarities
    from curricle.objectives.matched_geometries import MatchCKA as MatchCKA
    from curricle.objectives.matched_geometries import MatchProcrustes as MatchProcrustes
    from curricle.objectives.matched_relations import MatchRelations as MatchRelations
    from curricle.objectives.paired_logits import MatchPairedLogits as MatchPairedLogits
    from curricle.objectives.vocabulary_groups import token_groups as token_groups
    from curricle.runs.compare import Comparison as Comparison
    from curricle.runs.compare import compare as compare
    from curricle.runs.evaluate import Evaluation as Evaluation
    from curricle.runs.evaluate import evaluate as evaluate
    from curricle.runs.export import Exported as Exported
    from curricle.runs.export import export as export
    from curricle.runs.planning import Plan as Plan
    from curricle.runs.planning import plan as plan
    from curricle.runs.rank_plans import RankPlan as RankPlan
    from curricle.runs.rank_plans import plan_ranks as plan_ranks
    from curricle.runs.ray_cluster import RayCluster as RayCluster
    from curricle.runs.target_capture import capture_targets as capture_targets
    from curricle.runs.teaching import TrainedTeacher as TrainedTeacher
    from curricle.runs.teaching import teach as teach
    from curricle.teachers.stored import open_targets as open_targets
    from curricle.teachers.trajectory import Trajectory as Trajectory
    from curricle.teachers.trajectory import hugging_face_trajectory as hugging_face_trajectory
    from curricle.teachers.trajectory import open_trajectory as open_trajectory
    from curricle.training.distill import Result as Result
    from curricle.training.distill import distill as distill
    from curricle.training.setup.divergence import RollBack as RollBack
    from curricle.training.setup.divergence import SkipSteps as SkipSteps
    from curricle.training.setup.divergence import StopRun as StopRun
    from curricle.training.setup.optimizers import SGD as SGD
    from curricle.training.setup.optimizers import AdamW as AdamW
    from curricle.training.setup.optimizers import Schedule as Schedule
    from curricle.training.setup.settings import TrainingSettings as TrainingSettings
    from curricle.training.targets.capture import TargetCompression as TargetCompression
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "curriculum.automatic": ("auto",),
            "curriculum.durations": ("Duration", "UnlessExplained", "UntilMetric", "UntilPlateau"),
            "curriculum.hidden_layers": ("hidden_first", "joint"),
            "curriculum.layer_pairs": ("evenly_spaced_pairs",),
            "curriculum.initialization": (
                "AutoStart",
                "LeastSquaresStart",
                "PrincipalStart",
                "RandomStart",
                "SelectionStart",
            ),
            "curriculum.stages": ("Curriculum", "PricedLabels", "Stage"),
            "curriculum.strategies": (
                "extraction",
                "from_labels",
                "low_rank_clone",
                "one_shot",
                "progressive",
            ),
            "data.dataloaders": ("stream",),
            "data.batch": ("Batch",),
            "data.streams": ("Stream",),
            "data.synthetic.parity": ("ParityStream",),
            "data.text.own_texts": ("text_stream",),
            "data.text.paired": ("PairedTexts", "paired_texts"),
            "errors": ("CurricleError",),
            "metrics": ("Metric",),
            "models.ensemble": ("Ensemble",),
            "models.wrapping": ("tapped",),
            "models.mlp": ("MLP",),
            "models.sentence_encoder": ("SentenceEncoder",),
            "models.vocabularies": ("common_vocabulary",),
            "objectives.matched_embeddings": (
                "MatchEmbeddings",
                "MatchMargins",
                "MatchSimilarities",
            ),
            "objectives.hidden": ("LayerPair", "MatchHidden"),
            "objectives.labels": ("LabelLoss",),
            "objectives.logits": ("MatchLogits",),
            "objectives.low_rank_clone": ("LowRankClone",),
            "objectives.matched_geometries": ("MatchCKA", "MatchProcrustes"),
            "objectives.matched_relations": ("MatchRelations",),
            "objectives.paired_logits": ("MatchPairedLogits",),
            "objectives.vocabulary_groups": ("token_groups",),
            "runs.compare": ("Comparison", "compare"),
            "runs.evaluate": ("Evaluation", "evaluate"),
            "runs.export": ("Exported", "export"),
            "runs.planning": ("Plan", "plan"),
            "runs.rank_plans": ("RankPlan", "plan_ranks"),
            "runs.ray_cluster": ("RayCluster",),
            "runs.target_capture": ("capture_targets",),
            "runs.teaching": ("TrainedTeacher", "teach"),
            "teachers.stored": ("open_targets",),
            "teachers.trajectory": ("Trajectory", "hugging_face_trajectory", "open_trajectory"),
            "training.distill": ("Result", "distill"),
            "training.setup.divergence": ("RollBack", "SkipSteps", "StopRun"),
            "training.setup.optimizers": ("AdamW", "SGD", "Schedule"),
            "training.setup.settings": ("TrainingSettings",),
            "training.targets.capture": ("TargetCompression",),
        },
    )
