"""ALTA's bottleneck adapters as a PEFT method, `ALTA_ADAPTER`: config, layer and tuner, registered on import."""

import re
import warnings
from copy import copy, deepcopy
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import nn

from .adapters_alta import (
    TRAINED_MODULES,
    BottleneckAdapter,
    ParallelAdapter,
    SerialAdapter,
    bottleneck,
    bottleneck_size,
    output_size,
)
from .configuration_alta import ADAPTER_PARALLEL_MODULES, ADAPTER_TARGET_MODULES, AltaConfig


# In a `try` block the Hub's import check does not count `peft` as a requirement of a full model.
try:
    from peft import mapping as peft_mapping
    from peft.config import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
    from peft.utils import ModulesToSaveWrapper
except ImportError as error:
    raise ImportError("ALTA adapters need the package `peft`: pip install peft") from error


class AltaPeftType(str, Enum):
    """PEFT's own enum is closed. The name must equal the value: the hash of a string enum is that of its name."""

    ALTA_ADAPTER = "ALTA_ADAPTER"


@dataclass
class AltaAdapterConfig(PeftConfig):
    """
    Configuration of ALTA's adapters (paper, section III-B); the defaults are the published ones.

    Args:
        bottleneck_ratio (`float`): adapter width over hidden size.
        parallel_scale (`float`): factor of the adapter beside an MLP.
        target_modules (`str` or `list[str]`): modules to adapt: a regular expression on the full name, or suffixes.
        parallel_modules (`str` or `list[str]`): those among them whose adapter is parallel; the others are serial.
        exclude_modules (`str` or `list[str]`, *optional*): modules to leave as they are.
        modules_to_save (`list[str]`): modules trained and saved beside the adapters, as far as the model has them.
        train_adapted_norms (`bool`): also train and save the LayerNorms inside adapted modules, where PEFT's
            `modules_to_save` does not reach.

    Raises:
        ValueError: for a ratio that is not positive.
    """

    bottleneck_ratio: float = field(default=0.25, metadata={"help": "Adapter width over hidden size."})
    parallel_scale: float = field(default=0.5, metadata={"help": "Factor of the adapter beside an MLP."})
    target_modules: str | list[str] | None = field(
        default=ADAPTER_TARGET_MODULES, metadata={"help": "Modules to adapt: regular expression or suffixes."}
    )
    parallel_modules: str | list[str] = field(
        default=ADAPTER_PARALLEL_MODULES, metadata={"help": "Target modules whose adapter is parallel."}
    )
    exclude_modules: str | list[str] | None = field(default=None, metadata={"help": "Modules to leave as they are."})
    modules_to_save: list[str] | None = field(
        default_factory=lambda: list(TRAINED_MODULES), metadata={"help": "Modules trained beside the adapters."}
    )
    train_adapted_norms: bool = field(
        default=True, metadata={"help": "Train the LayerNorms inside adapted modules beside the adapters."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = AltaPeftType.ALTA_ADAPTER
        if self.bottleneck_ratio <= 0:
            raise ValueError(f"`bottleneck_ratio` must be positive, got {self.bottleneck_ratio}.")


class AltaAdapterLayer(nn.Module, BaseTunerLayer):
    """A module with any number of named adapters, serial or parallel, of which the active ones act."""

    adapter_layer_names = ("alta_adapter_down", "alta_adapter_up")
    other_param_names = ("parallel_scale",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AltaAdapterConfig, is_parallel: bool):
        super().__init__()
        self.base_layer = base_layer
        self.alta_adapter_down = nn.ModuleDict()
        self.alta_adapter_up = nn.ModuleDict()
        self.parallel_scale = {}
        self.is_parallel = is_parallel
        self._disable_adapters = False
        self.merged_adapters = []
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: AltaAdapterConfig) -> None:
        """Add an adapter that does nothing yet."""
        hidden_size = output_size(self.base_layer)
        width = bottleneck_size(hidden_size, config.bottleneck_ratio)
        self.alta_adapter_down[adapter_name] = nn.Linear(hidden_size, width)
        self.alta_adapter_up[adapter_name] = nn.Linear(width, hidden_size)
        self.parallel_scale[adapter_name] = config.parallel_scale
        nn.init.zeros_(self.alta_adapter_up[adapter_name].weight)
        nn.init.zeros_(self.alta_adapter_up[adapter_name].bias)
        if config.train_adapted_norms:
            self._train_norms(adapter_name, config.inference_mode)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=config.inference_mode)

    def _norms(self) -> list[tuple[str, nn.Module]]:
        """LayerNorms of the base module, those already wrapped as their wrappers."""
        return [
            (name, module)
            for name, module in self.base_layer.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
            or (isinstance(module, nn.LayerNorm) and not re.search(r"(original_module|modules_to_save)", name))
        ]

    def _train_norms(self, adapter_name: str, inference_mode: bool) -> None:
        """Give every LayerNorm of the base module a copy of this adapter, as `modules_to_save` does elsewhere."""
        for name, module in self._norms():
            if isinstance(module, ModulesToSaveWrapper):
                module.update(adapter_name)
                module.set_adapter(module.active_adapters, inference_mode=inference_mode)
            else:
                wrapper = ModulesToSaveWrapper(module, adapter_name)
                wrapper.set_adapter(adapter_name, inference_mode=inference_mode)
                self.base_layer.set_submodule(name, wrapper)

    def forward(self, *args) -> torch.Tensor:
        hidden_states = self.base_layer(*args)
        if self.disable_adapters:
            return hidden_states
        for name in self.active_adapters:
            if name in self.alta_adapter_down:
                delta = self._delta(name, args[-1] if self.is_parallel else hidden_states).to(hidden_states.dtype)
                scale = self.parallel_scale[name] if self.is_parallel else 1
                hidden_states = torch.add(hidden_states, delta, alpha=scale)
        return hidden_states

    def _delta(self, name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        down, up = self.alta_adapter_down[name], self.alta_adapter_up[name]
        if not torch.is_autocast_enabled(hidden_states.device.type):  # which casts them itself, to its own dtype
            hidden_states = self._cast_input_dtype(hidden_states, down.weight.dtype)
        return bottleneck(hidden_states, down, up)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base module, with `merge` inside a native adapter: a bottleneck cannot be folded into one matrix."""
        names = self.names_to_merge(adapter_names) if merge else []
        self._unwrap_norms(names[0] if names else None)
        if not names:
            return self.base_layer
        adapter = BottleneckAdapter(1, 1)
        adapter.down, adapter.up = self.alta_adapter_down[names[0]], self.alta_adapter_up[names[0]]
        if self.is_parallel:
            return ParallelAdapter(self.base_layer, adapter, self.parallel_scale[names[0]])
        return SerialAdapter(self.base_layer, adapter)

    def names_to_merge(self, adapter_names: list[str] | None) -> list[str]:
        """Those of `adapter_names`, or of the active ones, that this layer has."""
        return [name for name in adapter_names or self.active_adapters if name in self.alta_adapter_down]

    def _unwrap_norms(self, adapter_name: str | None) -> None:
        for name, module in self._norms():
            if isinstance(module, ModulesToSaveWrapper):
                trained = dict(module.modules_to_save.items()).get(adapter_name, module.original_module)
                self.base_layer.set_submodule(name, trained)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError("ALTA adapters cannot be merged in place; `merge_and_unload` gives a full model.")

    def unmerge(self) -> None:
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)

    def _get_base_layer_device_and_dtype(self, base_layer):
        parameter = next(base_layer.parameters())
        return parameter.device, parameter.dtype

    def __repr__(self) -> str:
        return f"alta_adapter.{super().__repr__()}"


class AltaAdapterModel(BaseTuner):
    """Finds the target modules and wraps them; merging turns the adapters into native ones."""

    prefix = "alta_adapter_"
    tuner_layer_cls = AltaAdapterLayer
    target_module_mapping = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Add an adapter, by a copy of its config that names only what this model has to save.

        PEFT finds a weight in the file for every module named: the text projection is none of a classifier's, and the
        classifier none of the aligned model's.
        """
        config = copy(self.peft_config[adapter_name])
        names = [name for name, _ in model.named_modules()]
        config.modules_to_save = [saved for saved in config.modules_to_save or () if _is_suffix(saved, names)]
        self.peft_config[adapter_name] = config
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    @staticmethod
    def _check_target_module_exists(peft_config: AltaAdapterConfig, key: str):
        return check_target_module_exists(peft_config, key)

    def _create_and_replace(
        self, peft_config: AltaAdapterConfig, adapter_name: str, target, target_name: str, parent, current_key: str
    ) -> None:
        if isinstance(target, AltaAdapterLayer):
            target.update_layer(adapter_name, peft_config)
            return
        is_parallel = re.fullmatch(as_pattern(peft_config.parallel_modules), current_key) is not None
        layer = AltaAdapterLayer(target, adapter_name, peft_config, is_parallel)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, adapter_names=None, **kwargs) -> nn.Module:
        if merge:
            self._check_one_adapter_over_a_plain_base(adapter_names)
        config = self.peft_config[(adapter_names or self.active_adapters)[0]]
        # PEFT's `unload` leaves the trained copies of `modules_to_save` behind; the base has the original ones.
        originals = {
            name: module.original_module
            for name, module in self.model.named_modules()
            if isinstance(module, ModulesToSaveWrapper) and ".base_layer." not in name
        }
        base_dtypes = self._base_dtypes()
        model = super()._unload_and_optionally_merge(merge=merge, adapter_names=adapter_names, **kwargs)
        if merge:
            model.config = config_with_adapters(model.config, config)
            # Over a base in several dtypes, such as frozen matrices alone in half precision, autocast makes them meet.
            if len(base_dtypes) == 1:
                cast_parameters(model, *base_dtypes)
        else:
            for name, original in originals.items():
                model.set_submodule(name, original)
        return model

    def _base_dtypes(self) -> set[torch.dtype]:
        """Dtypes of the model without its adapters and the copies that train beside them."""
        is_trained = re.compile(rf"(^|\.)({self.prefix}\w+|modules_to_save)\.").search
        parameters = [parameter for name, parameter in self.model.named_parameters() if not is_trained(name)]
        return {parameter.dtype for parameter in parameters if parameter.is_floating_point()}

    def _check_one_adapter_over_a_plain_base(self, adapter_names: list[str] | None) -> None:
        for layer in self.model.modules():
            if not isinstance(layer, AltaAdapterLayer):
                continue
            names = layer.names_to_merge(adapter_names)
            if len(names) > 1 or isinstance(layer.base_layer, SerialAdapter | ParallelAdapter):
                raise ValueError(
                    f"`merge_and_unload` takes one adapter over a base without adapters inside, got {names} over "
                    f"{type(layer.base_layer).__name__}. Keep the adapters apart, or name one by `adapter_names`."
                )


def config_with_adapters(model_config: AltaConfig, adapter_config: AltaAdapterConfig) -> AltaConfig:
    """A copy of a model's config that says that these adapters are inside the model."""
    model_config = deepcopy(model_config)
    model_config.use_adapters = True
    model_config.adapter_bottleneck_ratio = adapter_config.bottleneck_ratio
    model_config.parallel_adapter_scale = adapter_config.parallel_scale
    model_config.adapter_target_modules = target_pattern(adapter_config)
    model_config.adapter_parallel_modules = as_pattern(adapter_config.parallel_modules)
    return model_config


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter a dtype, but those of a quantised layer, which are no floats."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _is_suffix(suffix: str, names: list[str]) -> bool:
    return any(name.endswith(suffix) for name in names)


def target_pattern(adapter_config: AltaAdapterConfig) -> str:
    """The target modules but the excluded ones as one regular expression on the full name."""
    targets = as_pattern(adapter_config.target_modules)
    if not adapter_config.exclude_modules:
        return targets
    return rf"(?!({as_pattern(adapter_config.exclude_modules)})$)({targets})"


def as_pattern(modules: str | list[str]) -> str:
    """Module names as one regular expression on the full name."""
    return modules if isinstance(modules, str) else rf"(.*\.)?({'|'.join(map(re.escape, sorted(modules)))})"


for _registry, _value in (
    (peft_mapping.PEFT_TYPE_TO_CONFIG_MAPPING, AltaAdapterConfig),
    (peft_mapping.PEFT_TYPE_TO_TUNER_MAPPING, AltaAdapterModel),
    (peft_mapping.PEFT_TYPE_TO_PREFIX_MAPPING, AltaAdapterModel.prefix),
):
    _registry.setdefault(AltaPeftType.ALTA_ADAPTER, _value)


__all__ = ["AltaAdapterConfig", "AltaAdapterLayer", "AltaAdapterModel", "AltaPeftType"]
