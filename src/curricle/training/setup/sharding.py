"""Placement of a run in several processes that hold the student, and the teacher, in shares.

`fully_shard` (FSDP2) divides weights, gradients and the state of the optimizer among the processes.
The weights of a block are gathered right before it runs, and freed after it; blocks behind the
deepest tap of a stage are neither run nor gathered.

Design: the sharded module is a copy of the student's modules that has the student's parameters, and
the student itself is without weights meanwhile. `fully_shard` changes modules in place and has no
way back, while a run returns the very module that it was given, whole and as it was. Binding and
closed-form starts come before and find whole weights. The optimizer is made after: a pass before it
would leave it the wrong tensors.

A teacher is divided in the same way, but before it is placed: its copy has tensors of its own, and
is moved to the device block by block, so that no device ever holds it whole. The teacher itself
stays as it is, in the memory where it was loaded. Its passes have no gradient, so each frees the
weights that it gathers.

An early exit is caught inside of the outermost module, which is the root: an exception through it
would skip the work after the pass. The root keeps its weights gathered from a pass to its backward
pass, so that a head that is multiplied in chunks finds its weight, and frees them after a pass
without gradient: torch keeps them by default, and the next update would miss them without an error.

References:
    Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277.
"""

import atexit
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, final

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from curricle.errors import BindError
from curricle.models.dispatching import is_dispatched
from curricle.models.hooked import HookedModel
from curricle.models.hooked_forward import HookedForward, PlainCall
from curricle.models.shape_passes import block_paths
from curricle.models.shares import is_share, whole
from curricle.models.tapped import TappedModel
from curricle.training.setup.placement import Device, Placement, find_placement, kind_of
from curricle.training.setup.processes import Processes, hooked, is_launched


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    """Words of the sentences about a model that cannot be divided."""

    name: str
    """Argument with the model."""
    setting: str
    """Setting that divides it."""
    remedy: str
    """Setting that does not."""


STUDENT = _Role(name="'student'", setting="parallel='fsdp2'", remedy="parallel='ddp'")
TEACHER = _Role(
    name="'teacher'", setting="teacher_parallel='fsdp2'", remedy="teacher_parallel='whole'"
)


@final
class ShardedModule(nn.Module):
    """Outermost module of a sharded model, the root of its groups of weights."""

    def __init__(self, module: nn.Module) -> None:
        """Hold a model.

        Args:
            module: The model.
        """
        super().__init__()
        self.module = module
        self.blocks: tuple[FSDPModule, ...] = ()
        """Modules with a group of weights of their own."""

    def forward(
        self,
        collector: HookedForward | PlainCall,
        inputs: Any,  # noqa: ANN401 - as in the base
        keywords: Mapping[str, object],
    ) -> Any:  # noqa: ANN401
        """Return the output of a pass, between the gathering and the freeing of the root's weights.

        Args:
            collector: The open taps, or a plain call.
            inputs: Inputs of the model.
            keywords: Fixed keyword arguments of the model.
        """
        assert isinstance(self, FSDPModule)  # noqa: S101 - `fully_shard` has changed the class
        has_backward = torch.is_grad_enabled()
        self.set_reshard_after_forward(not has_backward, recurse=False)
        output = collector.collect(self.module, inputs, keywords)
        if not has_backward:
            collector.keep_head()
            # A block whose input is the last tap is left before its own work after the pass.
            for block in self.blocks:
                block.reshard()
        return output


@final
class FullyShard(Processes):
    """Processes that each hold a share of the student, and the teacher whole or a share of it."""

    def __init__(self, kind: str, timeout: float, replicas: int = 1) -> None:
        """Join the group of processes.

        Args:
            kind: `cpu` or `cuda`.
            timeout: Seconds within which a process must answer.
            replicas: Number of groups of processes that each hold the student once.

        Raises:
            BindError: If the processes cannot be divided among the groups.
        """
        self._replicas = replicas
        super().__init__(kind, timeout)
        number = self.num_processes
        if number % replicas:
            raise BindError(
                f"'replicas' must divide the {number} processes into groups that each hold the "
                f"student once; got {replicas}"
            )
        # Two axes only where there are several groups: torch adds up gradients along the first.
        self._mesh = (
            init_device_mesh(kind, (number,), mesh_dim_names=("share",))
            if replicas == 1
            else _mesh(kind, replicas, number // replicas, timeout=self._group.device_timeout)
        )

    @property
    def layout(self) -> dict[str, object]:
        """Return the division of models and the kind of processor, which all processes share."""
        return {"parallel": "fsdp2", "replicas": self._replicas, "device": self.kind}

    @contextmanager
    def sharded(self, model: TappedModel) -> Iterator[TappedModel]:
        """Divide the weights of a model among the processes until the end of the block.

        After it the model has whole weights again, the trained ones, in every process. After an
        exception it is left without: other processes need not come here, so nothing is gathered.

        Yields:
            The model to train, a copy in shares.

        Raises:
            BindError: If the model cannot be divided.
        """
        tensors = [*model.module.parameters(), *model.module.buffers()]
        divided = self._divided(hooked(model), {id(item): item for item in tensors}, STUDENT)
        parameters = list(model.module.parameters())
        for parameter in parameters:
            parameter.data = parameter.data.new_empty(0)
        yield divided
        # In the order of the copied modules, which is that of the student's.
        shares = list(divided.module.parameters())
        for parameter, share in zip(parameters, shares, strict=True):
            parameter.data = whole(share)

    def divided(self, model: TappedModel) -> TappedModel:
        """Return a copy of a teacher whose weights are divided among the processes.

        The teacher keeps its own weights where they are.

        Args:
            model: The teacher, whole and alike in all processes.

        Raises:
            BindError: If the teacher cannot be divided.
        """
        whole_model = hooked(model, "'teacher_parallel' must be 'whole' for a teacher")
        if is_dispatched(model.module):
            raise BindError(
                "'teacher' must be in one place to be divided by teacher_parallel='fsdp2'; its "
                "'device_map' has put it on several; load the model without one"
            )
        # Frozen: FSDP2 would reserve memory for gradients. Detached: what is moved to the device,
        # and freed again when it is divided, is not the teacher's own tensor.
        tensors: dict[int, Tensor] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False)
            for weight in model.module.parameters()
        }
        tensors |= {id(buffer): buffer.detach().clone() for buffer in model.module.buffers()}
        return self._divided(whole_model, tensors, TEACHER)

    def _divided(
        self, model: HookedModel, tensors: Mapping[int, Tensor], role: _Role
    ) -> HookedModel:
        """Return a copy in shares of a model; see `_copied`."""
        divided = _copied(model, tensors, role)
        _check(divided.module, role)
        divided.wrap(lambda outermost: _shard(divided, outermost, self._mesh))
        return divided

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the norm of all gradients, of shares and of whole ones, without axes."""
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        groups = [
            [gradient for gradient in gradients if is_share(gradient) is are_shares]
            for are_shares in (True, False)
        ]
        norms = [whole(nn.utils.get_total_norm(group)) for group in groups if group]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> None:
        """Scale gradients down to a largest norm, that of shares and of whole gradients."""
        # As in torch.nn.utils.clip_grad_norm_, without its look at a number on a GPU.
        factor = (max_norm / (self.gradient_norm(parameters) + 1e-6)).clamp(max=1.0)
        for weight in parameters:
            if weight.grad is not None:
                weight.grad.mul_(factor)

    @contextmanager
    def synchronized(
        self, model: TappedModel
    ) -> Iterator[Callable[[], AbstractContextManager[object]]]:
        """Take the mean of a model's gradients over all processes, each its share of it.

        Yields:
            Opens the context of a micro-batch that is not the last of its step.
        """
        root = hooked(model).outermost
        assert isinstance(root, FSDPModule)  # noqa: S101 - the run trains the sharded copy

        @contextmanager
        def unsummed() -> Iterator[None]:
            root.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                root.set_requires_gradient_sync(True)

        yield unsummed


def _mesh(kind: str, replicas: int, shares: int, *, timeout: float) -> DeviceMesh:
    """Return the processes as a mesh of (replica, share).

    Args:
        kind: `cpu` or `cuda`.
        replicas: Number of groups of processes that each hold the student once.
        shares: Number of processes in each.
        timeout: Seconds within which a process must answer. `init_device_mesh` would make groups
            with torch's own timeout, of half an hour.
    """
    ranks = torch.arange(replicas * shares).view(replicas, shares)
    groups = [
        distributed.new_subgroups_by_enumeration(rows.tolist(), timeout=timedelta(seconds=timeout))[
            0
        ]
        for rows in (ranks.T, ranks)
    ]
    return DeviceMesh.from_group(groups, kind, mesh=ranks, mesh_dim_names=("replica", "share"))


def _copied(model: HookedModel, tensors: Mapping[int, Tensor], role: _Role) -> HookedModel:
    """Return a model with copied modules and other parameters and buffers.

    Args:
        model: The model.
        tensors: Tensors of the copy, by the `id` of the model's own.
        role: Role of the model.

    Raises:
        BindError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(model, dict[int, object](tensors))
    except (RuntimeError, TypeError) as error:
        raise BindError(
            f"{role.name} must be a module that copy.deepcopy can copy for {role.setting}; "
            f"torch says: {error}; {role.remedy} copies nothing"
        ) from error


def _shard(model: HookedModel, outermost: nn.Module, mesh: DeviceMesh) -> ShardedModule:
    """Return the root of a model whose blocks and remaining weights are sharded."""
    root = ShardedModule(outermost.get_submodule("module"))
    blocks = [model.module.get_submodule(path) for path in unit_paths(model)]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # Explicit: by default the root keeps its weights gathered after a pass.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    root.blocks = tuple(block for block in blocks if isinstance(block, FSDPModule))
    return root


def unit_paths(model: TappedModel) -> tuple[str, ...]:
    """Return the paths of the blocks whose parameters belong to no other module of the model.

    Args:
        model: The model.
    """
    named = dict(model.module.named_parameters(remove_duplicate=False))

    def is_apart(path: str) -> bool:
        inside = {id(weight) for name, weight in named.items() if name.startswith(f"{path}.")}
        outside = {id(weight) for name, weight in named.items() if not name.startswith(f"{path}.")}
        return bool(inside) and not inside & outside

    return tuple(path for path in block_paths(model) if is_apart(path))


def _check(module: nn.Module, role: _Role) -> None:
    """Check that weights can be divided.

    Raises:
        BindError: If one is a scalar, or trained ones are of several types.
    """
    dtypes: dict[torch.dtype, str] = {}
    for name, weight in module.named_parameters():
        if not weight.ndim:
            raise BindError(
                f"{role.name} must have weights with an axis to be divided by {role.setting}; "
                f"{name!r} is a scalar; give it the shape (1,), or set {role.remedy}"
            )
        if weight.requires_grad:
            dtypes.setdefault(weight.dtype, name)
    if len(dtypes) > 1:
        names = " and ".join(f"{name!r} is {dtype}" for dtype, name in dtypes.items())
        raise BindError(
            f"{role.name} must have trained weights of one type for {role.setting}; {names}; "
            f"set {role.remedy}"
        )


def fully_sharded(device: Device, timeout: float, replicas: int) -> Placement:
    """Return the placement of this process in a group whose processes hold shares.

    Args:
        device: Value of the setting; `auto` takes a GPU if there is one.
        timeout: Seconds within which a process must answer.
        replicas: Number of groups of processes that each hold the student once.
    """
    if not is_launched():
        return find_placement(device)
    return _member(kind_of(device), timeout, replicas)


@cache
def _member(kind: str, timeout: float, replicas: int) -> FullyShard:
    # One for each kind of processor, as in `processes`.
    return FullyShard(kind, timeout, replicas)


# The mesh holds the group, whose threads must not outlive Python; see `processes`.
atexit.register(_member.cache_clear)
