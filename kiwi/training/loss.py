"""The loss of a step: rectified flow on latents, with optional weights and terms on the predicted clean latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kiwi.configuration import StageSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.model.flow import TRAINING_STEPS, bell_weights, noised, training_sigmas
from kiwi.training.mixture import Batch, training_noise

MOST_CHANGE = 8.0


@dataclass(frozen=True)
class Losses:
    """The loss of one batch, and what it is made of.

    Attributes:
        loss: a scalar with a gradient.
        by_sample: [B], each sample's mean squared error, without a gradient.
        sigma: [B], the noise levels.
    """

    loss: Tensor
    by_sample: Tensor
    sigma: Tensor


def losses(model: KiwiEditModel, batch: Batch, noise: Tensor, levels: Tensor, stage: StageSettings) -> Losses:
    """The stage's loss over a batch (paper, equation 2), in float32.

    Args:
        noise: of the target's shape.
        levels: [B], indices into the training levels.

    With an `edit_weight`, places where source and target differ count more; the minimum stays where it was, since
    each place is still fitted by its own squared error. The optional terms look at the clean latents that the
    velocity predicts, x_t - σ·v.
    """
    sigma = training_sigmas().to(levels.device)[levels]
    context = model.context_encoder(batch.prompts, batch.vision, batch.reference_vision)
    noisy = noised(batch.target, noise, sigma)
    velocity = model(noisy, sigma, context, batch.source, batch.reference).float()
    error = (velocity - (noise - batch.target)).square()
    if stage.edit_weight:
        error = error * edit_weights(batch.source, batch.target, stage.edit_weight)
    if stage.weighting == "bell":
        error = error * _like(bell_weights(sigma.cpu() * TRAINING_STEPS).to(error), error)
    loss = error.mean()
    if stage.reference_similarity or stage.temporal_consistency:
        clean = noisy - _like(sigma, noisy) * velocity
        loss = loss + _terms(clean, batch, sigma, stage)
    return Losses(loss, error.detach().flatten(1).mean(dim=1), sigma)


def flow_matching_loss(model: KiwiEditModel, batch: Batch, seed: tuple[int, ...], edit_weight: float = 0.0) -> Tensor:
    """The plain loss of a batch, whose noise is a function of `seed`."""
    noise, levels = training_noise(batch.target.shape, seed)
    return losses(model, batch, noise, levels, _plain(edit_weight)).loss


def _plain(edit_weight: float) -> StageSettings:
    return StageSettings(
        name="plain", steps=1, mix={}, learning_rate=0.0, mllm_learning_rate=0.0, edit_weight=edit_weight
    )


def edit_weights(source: Tensor, target: Tensor, strength: float) -> Tensor:
    """Weights of mean 1 a sample over latent places: 1 + strength · (change there over its mean, at most 8).

    Args:
        source, target: latents [B, C, F, h, w].

    Returns:
        [B, 1, F, h, w].
    """
    change = (target - source).abs().mean(dim=1, keepdim=True)
    share = change / (change.mean(dim=(2, 3, 4), keepdim=True) + 1e-6)
    weights = 1 + strength * share.clamp(max=MOST_CHANGE)
    return weights / weights.mean(dim=(2, 3, 4), keepdim=True)


def _terms(clean: Tensor, batch: Batch, sigma: Tensor, stage: StageSettings) -> Tensor:
    """The optional terms; each counts by 1 - σ, for at high noise the predicted clean latents say little."""
    sure = 1 - sigma
    total = clean.new_zeros(())
    if stage.reference_similarity and batch.reference is not None:
        total = total + stage.reference_similarity * (sure * reference_unlikeness(clean, batch.reference)).mean()
    if stage.temporal_consistency and clean.shape[2] > 1:
        total = total + stage.temporal_consistency * (sure * temporal_error(clean, batch.target)).mean()
    return total


def reference_unlikeness(clean: Tensor, reference: Tensor) -> Tensor:
    """1 - the mean, over the reference's places, of the highest cosine with any place of the clip. [B], in 0-2.

    Args:
        clean: latents [B, C, F, h, w].
        reference: latents [B, C, R, h, w].
    """
    ours = torch.nn.functional.normalize(clean.flatten(2), dim=1)
    theirs = torch.nn.functional.normalize(reference.flatten(2), dim=1)
    nearest = (theirs.mT @ ours).amax(dim=2)
    return 1 - nearest.mean(dim=1)


def temporal_error(clean: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the changes from one latent frame to the next. [B]."""
    return (clean.diff(dim=2) - target.diff(dim=2)).square().flatten(1).mean(dim=1)


def _like(values: Tensor, other: Tensor) -> Tensor:
    return values.view(-1, *([1] * (other.dim() - 1)))
