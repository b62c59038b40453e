"""Structural checks of objects against protocols, equal in every supported Python.

`isinstance` with a runtime protocol reads attributes by `inspect.getattr_static` since Python 3.12.
It then misses attributes that `__getattr__` forwards: the submodules of a `torch.nn.Module`, a
wrapped model behind PEFT or `torch.compile`, and the `attribute_map` of a configuration.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar, cast, runtime_checkable

from curricle.errors import BindError, loading_hint

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

Structure = TypeVar("Structure")


def conforms(value: object, protocol: type[Structure]) -> TypeGuard[Structure]:
    """Return whether an object has all members of a protocol, forwarded ones included.

    Args:
        value: Any object.
        protocol: A protocol class.
    """
    return all(
        hasattr(value, name) and not (is_method and getattr(value, name) is None)
        for name, is_method in _members(protocol).items()
    )


def _members(protocol: type) -> dict[str, bool]:
    """Return the names that a protocol and its bases declare, and whether each is a method."""
    names: dict[str, bool] = {}
    for base in protocol.__mro__:
        if base is Protocol or not getattr(base, "_is_protocol", False):
            continue
        # The other private names are those of the protocol machinery itself.
        declared = {**getattr(base, "__annotations__", {}), **vars(base)}
        for name in declared:
            if not name.startswith("_") or name in ("__call__", "__dataclass_fields__"):
                names.setdefault(name, callable(vars(base).get(name)))
    return names


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a tokenizer of transformers that tasks use."""

    if TYPE_CHECKING:
        # transformers forwards them by `__getattr__`, which `isinstance` misses.
        model_input_names: list[str]
        pad_token_id: int | None
        eos_token_id: int | None
        bos_token_id: int | None
        mask_token_id: int | None

    def __len__(self) -> int:
        """Return the number of ids."""
        ...

    def __call__(self, *args: object, **options: object) -> Any:  # noqa: ANN401 - as in transformers
        """Return token ids, masks and so on, by name."""

    def apply_chat_template(self, *args: object, **options: object) -> Any:  # noqa: ANN401 - as in transformers
        """Return the token ids of messages."""

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """Return the id of a token."""
        ...

    def save_pretrained(self, save_directory: Path) -> object:
        """Write the tokenizer."""
        ...


def fast_backend(role: str, tokenizer: object) -> "FastTokenizer":
    """Return the tokenizer of the package tokenizers inside a fast tokenizer of transformers.

    Args:
        role: `student` or `teacher`, for the error sentence; empty for the tokenizer of both.
        tokenizer: A fast tokenizer of transformers, or a `Tokenizer` of tokenizers itself.

    Raises:
        BindError: If it is neither.
    """
    backend: object = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "get_vocab") or not hasattr(type(backend), "from_str"):
        name = f"{role}_tokenizer" if role else "tokenizer"
        raise BindError(
            f"{name!r} must be a fast tokenizer of transformers or a Tokenizer of tokenizers; got "
            f"{type(tokenizer).__name__!r}{loading_hint(tokenizer, 'AutoTokenizer')}"
        )
    return cast("FastTokenizer", backend)
