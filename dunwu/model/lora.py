"""LoRA (Hu et al. 2021, arXiv 2106.09685): frozen weights W, and beside each a trained product of two thin matrices.

    y = W x + b + s · B A dropout(x)        A (r, in) random, B (out, r) zero: at the start nothing is changed

    add_lora(model, config, generator)      adapters in, all else frozen
    with disabled(model): …                 the model as it was: a reference without a second copy
    merge(model)                            W + s·B·A becomes W, and the model is plain again

Every linear layer of a block can have one, each routed expert its own; embedding, head, router, norms and the module of
`mtp_depth` have none. Adapters have their base's dtype, as all weights here do: `MasterAdamW` keeps what is trained in fp32.
While adapters are in, a model is computed in plain torch: the C kernels know whole matrices only.

Legend: M tokens sorted by expert, E experts, D width, F inner width, r rank. Files in PEFT's format: `lora_files.py`.
Not covered: DoRA, trained biases, adapters on embeddings, several adapters at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.config import MoeShape
from dunwu.model.layers import Linear
from dunwu.model.lora_config import LoraConfig
from dunwu.model.moe import Experts, grouped
from dunwu.model.transformer import Transformer
from dunwu.types import UsageError

EXPERT_PARTS = ("gate_proj", "up_proj", "down_proj")
"""What the linear layers of a routed expert are called; here they are slices of stacked matrices."""


class LoraLinear(Linear):
    """A linear layer whose weight and bias are frozen, with an adapter.

    Args:
        base: its weight and bias are shared, not copied.
        generator: draws A, uniform in ±1/√in (PEFT's default).
    """

    off = False
    """True: as if there were no adapter."""

    def __init__(self, base: Linear, lora: LoraConfig, generator: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.lora = lora
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = _drawn((lora.rank, base.in_features), generator, base.weight)
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, lora.rank))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.off:
            return y
        return y + F.linear(F.linear(_dropped(self, x), self.lora_A), self.lora_B) * self.lora.scale

    def full_weight(self) -> Tensor:
        """(out, in): W + s·B·A, without dropout, with gradient."""
        return self.weight if self.off else self.weight + (self.lora_B @ self.lora_A) * self.lora.scale

    def merged(self) -> Linear:
        """The plain layer that computes the same."""
        plain = Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(_sum(self.weight, self.lora_A, self.lora_B, self.lora.scale))
        plain.bias = self.bias
        return plain


class LoraExperts(Experts):
    """Routed experts whose stacked matrices are frozen; each expert has an adapter on gate, on up and on down, or on some.

    Args:
        base: its matrices are shared, not copied.
        parts: which of `EXPERT_PARTS`.
    """

    off = False
    """True: as if there were no adapters."""

    def __init__(self, base: Experts, lora: LoraConfig, parts: Sequence[str], generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.lora, self.parts = lora, tuple(part for part in EXPERT_PARTS if part in parts)
        self.gate_up_proj, self.down_proj = base.gate_up_proj, base.down_proj
        for part in self.parts:
            experts, out, inner = self.matrix(part).shape
            self.register_parameter(f"{part}_A", _drawn((experts, lora.rank, inner), generator, base.down_proj))
            self.register_parameter(f"{part}_B", nn.Parameter(base.down_proj.new_zeros(experts, out, lora.rank)))

    def matrix(self, part: str) -> Tensor:
        """(E, out, in) of the base."""
        if part == "down_proj":
            return self.down_proj
        return self.gate_up_proj.chunk(2, dim=1)[EXPERT_PARTS.index(part)]

    def pair(self, part: str) -> tuple[Tensor, Tensor]:
        """A (E, r, in) and B (E, out, r)."""
        return self.get_parameter(f"{part}_A"), self.get_parameter(f"{part}_B")

    def into(self, sorted_MD: Tensor, ends_E: Tensor) -> Tensor:
        y = super().into(sorted_MD, ends_E)
        if self.off or not {"gate_proj", "up_proj"} & {*self.parts}:
            return y
        x = _dropped(self, sorted_MD)
        gate, up = y.chunk(2, dim=-1)
        return torch.cat((self._added(gate, "gate_proj", x, ends_E), self._added(up, "up_proj", x, ends_E)), dim=-1)

    def out_of(self, inner_MF: Tensor, ends_E: Tensor) -> Tensor:
        y = super().out_of(inner_MF, ends_E)
        return y if self.off else self._added(y, "down_proj", _dropped(self, inner_MF), ends_E)

    def _added(self, y: Tensor, part: str, x: Tensor, ends_E: Tensor) -> Tensor:
        if part not in self.parts:
            return y
        A, B = self.pair(part)
        return y + grouped(grouped(x, A, ends_E), B, ends_E) * self.lora.scale

    def merged(self) -> Experts:
        """The plain experts that compute the same."""
        shape = MoeShape(experts=len(self.down_proj), per_token=1, width=self.down_proj.shape[2])
        with torch.device("meta"):
            plain = Experts(self.down_proj.shape[1], shape)
        whole = {part: self.matrix(part).detach() for part in EXPERT_PARTS}
        for part in self.parts:
            new, (A, B) = torch.empty_like(whole[part]), self.pair(part)
            for e in range(len(new)):  # one at a time: the sum is made in fp32
                new[e] = _sum(whole[part][e], A[e], B[e], self.lora.scale)
            whole[part] = new
        plain.gate_up_proj = nn.Parameter(torch.cat((whole["gate_proj"], whole["up_proj"]), dim=1))
        plain.down_proj = nn.Parameter(whole["down_proj"])
        return plain


Adapted = LoraLinear | LoraExperts


def add_lora(model: nn.Module, config: LoraConfig, generator: torch.Generator, also: Sequence[str] = ()) -> None:
    """Give the linear layers adapters, in place, and freeze everything else.

    Args:
        model: a `Transformer`, or a module that holds one, such as a reward model.
        generator: on the CPU; the adapters follow from it and the config, whatever the device.
        also: modules that stay trained as they are, by name, such as a reward model's "score".

    Raises:
        UsageError: the config cannot work, a target is no linear layer's name, or the model has adapters already.

    Example:
        >>> from dunwu.model.config import ModelConfig
        >>> model = Transformer(ModelConfig(vocab_size=32, hidden_size=32, num_heads=2, num_layers=1))
        >>> add_lora(model, LoraConfig(rank=2, targets=("q_proj",)), torch.Generator())
        >>> sorted(lora_parameters(model))
        ['model.layers.0.self_attn.q_proj.lora_A', 'model.layers.0.self_attn.q_proj.lora_B']
    """
    config.validate()
    if not config.rank:
        raise UsageError("lora.rank is 0", "use 1 or more to have adapters")
    names = adaptable(model)
    if not names:
        raise UsageError("the model has no linear layers of ours", "train all its weights, without --lora.rank")
    known = sorted({name.rpartition(".")[2] for name in names})
    unknown = [target for target in config.targets if target not in ("all", *known)]
    if unknown:
        raise UsageError(f"lora.targets: no linear layer is called {unknown[0]}", "choose from all " + " ".join(known))
    chosen = [name for name in names if "all" in config.targets or name.rpartition(".")[2] in config.targets]
    adapt(model, dict.fromkeys(chosen, config), generator, also)


def adaptable(model: nn.Module, taken: bool = False) -> list[str]:
    """Names of all that can have an adapter: linear layers, and `….experts.gate_proj` and so on for routed experts.

    Args:
        taken: those that have one are named as well.

    Raises:
        UsageError: the model has adapters already, and not `taken`.
    """
    names: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Adapted) and not taken:
            raise UsageError(f"{name} has an adapter already", "merge it first")
        if ".layers." not in name:  # neither head nor score, nor what `mtp_depth` adds: no other program knows that
            continue
        if isinstance(module, Linear):
            names.append(name)
        elif isinstance(module, Experts):
            names += (f"{name}.{part}" for part in EXPERT_PARTS)
    return names


def adapt(
    model: nn.Module, places: Mapping[str, LoraConfig], generator: torch.Generator, also: Sequence[str] = ()
) -> None:
    """`add_lora` at named places (of `adaptable`), each with a config of its own; experts of a layer share one.

    Raises:
        UsageError: the parts of a layer's experts differ in their config.
    """
    experts: dict[str, list[str]] = {}
    new: dict[str, Adapted] = {}
    model.requires_grad_(False)
    for name, config in places.items():
        parent, _, leaf = name.rpartition(".")
        holder = model.get_submodule(parent)
        if isinstance(holder, Experts):
            experts.setdefault(parent, []).append(leaf)
            continue
        base = getattr(holder, leaf)
        assert isinstance(base, Linear)
        new[name] = LoraLinear(base, config, generator)
    for name, parts in experts.items():
        base = model.get_submodule(name)
        assert isinstance(base, Experts)
        config = places[f"{name}.{parts[0]}"]
        if any(places[f"{name}.{part}"] != config for part in parts):
            raise UsageError(f"{name}: gate, up and down have different ranks", "give them one")
        new[name] = LoraExperts(base, config, parts, generator)
    for name, module in new.items():
        _put(model, name, module)
    for name, parameter in model.named_parameters():
        if any(name.startswith(f"{module}.") for module in also):
            parameter.requires_grad_(True)
    for part in _transformers(model):
        vars(part)["native_before_lora"] = vars(part).get("native_allowed")
        part.native_allowed = False


def adapters(model: nn.Module) -> dict[str, Adapted]:
    """The modules with adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' own tensors, by name."""
    return {
        f"{name}.{own}": parameter
        for name, module in adapters(model).items()
        for own, parameter in module.named_parameters()
        if own.endswith(("_A", "_B"))
    }


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The model without its adapters, as long as this is open: what it was before they were trained."""
    before = [(module, module.off) for module in adapters(model).values()]
    for module, _ in before:
        module.off = True
    try:
        yield
    finally:
        for module, off in before:
            module.off = off


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every adapter to its weight, in place: a plain model, all of it trainable.

    The sum is made in fp32 and stored in the weight's dtype, layer by layer. Nothing happens where there is no adapter.
    """
    found = adapters(model)
    if not found:
        return
    for name in list(found):  # an old weight goes before the next new one comes: nothing stands twice
        _put(model, name, found.pop(name).merged())
    model.requires_grad_(True)
    for part in _transformers(model):
        before = vars(part).pop("native_before_lora", None)
        if before is None:
            vars(part).pop("native_allowed", None)
        else:
            part.native_allowed = before


def _sum(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return (weight.float() + (B.float() @ A.float()) * scale).to(weight.dtype)


def _drawn(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> nn.Parameter:
    bound = shape[-1] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator).to(like))


def _dropped(module: Adapted, x: Tensor) -> Tensor:
    share = module.lora.dropout
    return F.dropout(x, share) if share and module.training else x


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, leaf, module.train(getattr(holder, leaf).training))


def _transformers(model: nn.Module) -> list[Transformer]:
    return [part for part in model.modules() if isinstance(part, Transformer)]
