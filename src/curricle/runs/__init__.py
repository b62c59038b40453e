"""Runs on disk: specs, comparisons, budgets, probes and reports."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.runs.budget import Budget as Budget
    from curricle.runs.compare import Comparison as Comparison
    from curricle.runs.evaluate import Evaluation as Evaluation
    from curricle.runs.export import Exported as Exported
    from curricle.runs.fine_tuning import FineTuned as FineTuned
    from curricle.runs.fine_tuning import FineTuning as FineTuning
    from curricle.runs.fine_tuning import fine_tune as fine_tune
    from curricle.runs.harness import HarnessScores as HarnessScores
    from curricle.runs.harness import harness_scores as harness_scores
    from curricle.runs.minimal_pairs import PairAccuracy as PairAccuracy
    from curricle.runs.minimal_pairs import pair_accuracy as pair_accuracy
    from curricle.runs.minimal_pairs import read_pairs as read_pairs
    from curricle.runs.planning import Plan as Plan
    from curricle.runs.planning import plan as plan
    from curricle.runs.probe import probe_run as probe_run
    from curricle.runs.rank_plans import RankPlan as RankPlan
    from curricle.runs.rank_plans import plan_ranks as plan_ranks
    from curricle.runs.ray_cluster import RayCluster as RayCluster
    from curricle.runs.report import write_report as write_report
    from curricle.runs.spec import Goal as Goal
    from curricle.runs.spec import RunSpec as RunSpec
    from curricle.runs.spec import StrategySpec as StrategySpec
    from curricle.runs.spec import TargetsSpec as TargetsSpec
    from curricle.runs.spec import TeacherSpec as TeacherSpec
    from curricle.runs.spec import load_spec as load_spec
    from curricle.runs.target_capture import capture_targets as capture_targets
    from curricle.runs.teaching import TrainedTeacher as TrainedTeacher
    from curricle.runs.teaching import teach as teach
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "budget": ("Budget",),
            "compare": ("Comparison",),
            "evaluate": ("Evaluation",),
            "export": ("Exported",),
            "fine_tuning": ("FineTuned", "FineTuning", "fine_tune"),
            "harness": ("HarnessScores", "harness_scores"),
            "minimal_pairs": ("PairAccuracy", "pair_accuracy", "read_pairs"),
            "planning": ("Plan", "plan"),
            "probe": ("probe_run",),
            "rank_plans": ("RankPlan", "plan_ranks"),
            "ray_cluster": ("RayCluster",),
            "report": ("write_report",),
            "spec": (
                "RunSpec",
                "StrategySpec",
                "Goal",
                "TargetsSpec",
                "TeacherSpec",
                "load_spec",
            ),
            "target_capture": ("capture_targets",),
            "teaching": ("TrainedTeacher", "teach"),
        },
    )
