"""Teachers: a finished model or the checkpoints of its training."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.teachers.live import LiveTeacher as LiveTeacher
    from curricle.teachers.store.codecs import BFloat16 as BFloat16
    from curricle.teachers.store.codecs import Exact as Exact
    from curricle.teachers.store.codecs import Int8 as Int8
    from curricle.teachers.store.codecs import Sampled as Sampled
    from curricle.teachers.store.codecs import TopK as TopK
    from curricle.teachers.store.importing import ScoredSequence as ScoredSequence
    from curricle.teachers.store.importing import import_targets as import_targets
    from curricle.teachers.stored import StoredTeacher as StoredTeacher
    from curricle.teachers.stored import open_targets as open_targets
    from curricle.teachers.trajectory import Trajectory as Trajectory
    from curricle.teachers.trajectory import hugging_face_trajectory as hugging_face_trajectory
    from curricle.teachers.trajectory import open_trajectory as open_trajectory
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "live": ("LiveTeacher",),
            "store.codecs": ("BFloat16", "Exact", "Int8", "Sampled", "TopK"),
            "store.importing": ("ScoredSequence", "import_targets"),
            "stored": ("StoredTeacher", "open_targets"),
            "trajectory": ("Trajectory", "hugging_face_trajectory", "open_trajectory"),
        },
    )
