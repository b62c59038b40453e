"""Adapters of PEFT in a model, without importing it.

PEFT wraps single layers in place. The active adapters of a layer, their factors, and whether they
are merged or disabled, are attributes and not tensors: models of equal weights may compute
different functions.

Design: layers are recognized by the common attributes of all of PEFT's. Models of transformers have
methods of the same names, so only plain values count.
"""

from collections.abc import Mapping

from torch import nn

Settings = dict[str, dict[str, object]]
"""Settings of adapters by module path."""


def base_of(module: nn.Module) -> nn.Module:
    """Return the model inside of a PEFT wrapper; a model without one is returned as it is."""
    inner = getattr(module, "get_base_model", None)
    model = inner() if callable(inner) else module
    return model if isinstance(model, nn.Module) else module


def is_tuned(module: nn.Module) -> bool:
    """Return whether a module is a layer wrapped by PEFT, with an addition or a replacement."""
    return isinstance(getattr(module, "disable_adapters", None), bool)


def tuner_settings(module: nn.Module) -> Settings:
    """Return the settings that determine, beside the weights, the output of adapters.

    Args:
        module: A model; without adapters there are no settings.
    """
    all_settings = ((path, _settings(layer)) for path, layer in module.named_modules())
    return {path: settings for path, settings in all_settings if settings}


def _settings(layer: nn.Module) -> dict[str, object]:
    active = getattr(layer, "active_adapters", None)
    if not isinstance(active, (list, tuple)):
        return {}
    names = [str(name) for name in active]
    settings: dict[str, object] = {"active": names}
    if is_tuned(layer):
        merged = getattr(layer, "merged_adapters", None)
        factors = getattr(layer, "scaling", None)
        settings["disabled"] = bool(layer.disable_adapters)
        settings["merged"] = [str(name) for name in merged or ()]
        settings["scaling"] = {
            str(name): float(factor)
            for name, factor in (factors if isinstance(factors, Mapping) else {}).items()
            if name in active
        }
    return settings
