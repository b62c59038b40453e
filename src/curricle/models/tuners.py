"""Adapters that PEFT puts into a model, without importing it.

PEFT wraps single layers in place. Which of several adapters a layer uses, whether it uses any, with
which factor and whether they are merged into the layer's weights are attributes and no tensors: two
models of equal weights may compute different things.

Design: layers are known by the attributes that all of PEFT's have. The models of transformers have
methods of the same names, so only plain values count.
"""

from collections.abc import Mapping

from torch import nn

Settings = dict[str, dict[str, object]]
"""Settings of the adapters at a module, by module path."""


def base_of(module: nn.Module) -> nn.Module:
    """Return the model inside of a PEFT wrapper; a model without one is returned as it is."""
    inner = getattr(module, "get_base_model", None)
    model = inner() if callable(inner) else module
    return model if isinstance(model, nn.Module) else module


def is_tuned(module: nn.Module) -> bool:
    """Return whether a module is a layer that PEFT has wrapped to add to it or to replace it."""
    return isinstance(getattr(module, "disable_adapters", None), bool)


def tuner_settings(module: nn.Module) -> Settings:
    """Return the settings that determine, with the weights, the outputs of adapters.

    The result is empty for a model without adapters.

    Args:
        module: A model.
    """
    named = ((path, _settings(submodule)) for path, submodule in module.named_modules())
    return {path: settings for path, settings in named if settings}


def _settings(module: nn.Module) -> dict[str, object]:
    active = getattr(module, "active_adapters", None)
    if not isinstance(active, (list, tuple)):
        return {}
    names = [str(name) for name in active]
    settings: dict[str, object] = {"active": names}
    if is_tuned(module):
        merged = getattr(module, "merged_adapters", None)
        factors = getattr(module, "scaling", None)
        settings["disabled"] = bool(module.disable_adapters)
        settings["merged"] = [str(name) for name in merged or ()]
        settings["scaling"] = {
            str(name): float(factor)
            for name, factor in (factors if isinstance(factors, Mapping) else {}).items()
            if name in active
        }
    return settings
