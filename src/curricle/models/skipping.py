"""Blocks that a forward pass in training may skip.

Layer dropout leaves out whole blocks at random. A tap on such a block has no state in some steps,
so the run would fail at a random step. This is checked before the first step.
"""

from torch import nn

from curricle.errors import BindError
from curricle.models.tapped import Place, TappedModel

OPTION = "layerdrop"
"""Name, in modules and configurations, of the probability that a block is skipped."""


def check_always_runs(model: TappedModel, place: Place) -> None:
    """Check that no layer dropout skips a student's tap.

    Args:
        model: The model that learns.
        place: Place of the tap.

    Raises:
        BindError: If it may be skipped; the setting is named.
    """
    for path, setting, probability in _settings(getattr(model, "module", None)):
        if not path or place.path.startswith(f"{path}."):
            raise BindError(
                f"tap {place.label!r} must run in every training step; got {place.path!r} below "
                f"layer dropout with {setting} = {probability:g}; set student.{setting} = 0"
            )


def _settings(module: nn.Module | None) -> list[tuple[str, str, float]]:
    """Return path, setting and value of every layer dropout that is switched on.

    Some families read the configuration at every pass, others only when they are built.
    """
    if module is None:
        return []
    settings = [
        (path, f"{path}.{OPTION}" if path else OPTION, vars(layer)[OPTION])
        for path, layer in module.named_modules()
        if OPTION in vars(layer)
    ]
    if not settings:
        config = getattr(module, "config", None)
        settings = (
            [
                ("", f"config.{name}", value)
                for name, value in vars(config).items()
                if name.endswith(OPTION)
            ]
            if hasattr(config, "__dict__")
            else []
        )
    return [
        (path, setting, float(value))
        for path, setting, value in settings
        if isinstance(value, (int, float)) and value > 0
    ]
