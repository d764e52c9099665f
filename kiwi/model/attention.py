"""What computes Wan's attention: batched matrix products, quicker on a CPU, or one of diffusers' backends.

diffusers lets a model's attention processor be replaced; this one computes what the stock one computes (a test holds
them equal, forward and backward) with fewer passes over memory. benchmarks/attention.py measures both in one run.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from kiwi.errors import UsageError

CPU_BACKENDS = ("native", "flex", "_native_math")
LONGEST = 2048  # tokens; 2 heads of float32 scores are 34 MB there


class MatmulAttention:
    """An attention processor for `WanAttention`: bmm, softmax, bmm, with a fused RMS norm and rotary embedding.

    It holds the scores of all heads at once, so it is for the CPU, for float32 and for short sequences: elsewhere the
    stock processor takes over, also where a model was moved after it was built.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor

        self._stock = WanAttnProcessor()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError("MatmulAttention takes no mask; Wan's transformer gives none")
        fits = hidden_states.device.type == "cpu" and hidden_states.shape[1] <= LONGEST
        if not fits or hidden_states.dtype != torch.float32:
            stock: Tensor = self._stock(attn, hidden_states, encoder_hidden_states, None, rotary_emb)
            return stock
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _rms_norm(attn.to_q(hidden_states), attn.norm_q.weight, attn.norm_q.eps)
        key = _rms_norm(attn.to_k(seen), attn.norm_k.weight, attn.norm_k.eps)
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb, attn.heads), _rotated(key, *rotary_emb, attn.heads)
        q, k, v = (_split(x, attn.heads) for x in (query, key, attn.to_v(seen)))
        scale = q.shape[-1] ** -0.5
        scores = torch.baddbmm(q.new_empty(1), q, k.mT, beta=0, alpha=scale)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), v)
        batch, length, width = hidden_states.shape
        joined = mixed.view(batch, attn.heads, length, -1).transpose(1, 2).reshape(batch, length, width)
        return cast(Tensor, attn.to_out[0](joined))


def attend(transformer: Any, backend: str, device: torch.device, precision: str = "float32") -> None:
    """Chooses what computes a transformer's attention, in place.

    Args:
        backend: a name of diffusers' `set_attention_backend`; "native" is torch's own choice, and our own for float32
            on the CPU.

    Raises:
        UsageError: an unknown name, a library that is not installed, or one that needs a GPU where there is none.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor
    from diffusers.utils import logging

    if backend == "native":
        if device.type != "cpu" or precision != "float32":
            transformer.set_attn_processor(WanAttnProcessor())
        return
    check_attention(backend, device)
    said, active = logging.get_verbosity(), _AttentionBackendRegistry._active_backend
    logging.set_verbosity_error()  # it warns that backends are experimental, at every call
    transformer.set_attn_processor(WanAttnProcessor())
    try:
        transformer.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"attention {backend!r} is not there: {first}", "install it, or choose native") from error
    finally:
        logging.set_verbosity(said)
        _AttentionBackendRegistry.set_active_backend(active)  # or it would be that of every other model too


def check_attention(backend: str, device: torch.device) -> None:
    """Raises UsageError for a name that diffusers does not know, or that needs a GPU where the device is the CPU."""
    if backend not in known_backends():
        raise UsageError(f"no attention {backend!r}", f"attentions: {', '.join(known_backends())}")
    if device.type == "cpu" and backend not in CPU_BACKENDS:
        raise UsageError(
            f"attention {backend!r} works on a GPU, and the device is the CPU", f"there: {', '.join(CPU_BACKENDS)}"
        )


def known_backends() -> tuple[str, ...]:
    """The names of diffusers' attention backends."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    return tuple(name.value for name in AttentionBackendName)


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads·d] -> [B·heads, N, d]."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2).reshape(batch * heads, length, -1)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor, heads: int) -> Tensor:
    """Rotary embedding of neighbouring pairs, as complex products. x [B, N, heads·d]; cosines [1, N, 1, d]."""
    angles = torch.complex(cosines[..., 0::2], sines[..., 1::2])
    pairs = torch.view_as_complex(x.view(*x.shape[:2], heads, -1, 2))
    return torch.view_as_real(pairs * angles).reshape(x.shape)


class _RmsNorm(torch.autograd.Function):
    """y = x · rsqrt(mean(x²) + eps) · w over the last dimension, with its gradient in three passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (x * scale).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        inner = gradients[0] * weight
        along = torch.linalg.vecdot(inner, normed, dim=-1).unsqueeze(-1) / x.shape[-1]
        dx = inner.addcmul_(normed, along, value=-1).mul_(scale)
        dw = (gradients[0] * normed).flatten(0, -2).sum(0)
        return dx, dw, None


def _rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    result: Tensor = _RmsNorm.apply(x, weight, eps if eps is not None else torch.finfo(x.dtype).eps)
    return result
