"""Normalization is (pixel / 255 - mean) / std, channel by channel."""

from __future__ import annotations

import torch

from stoker.models.normalize import Normalize


def test_each_channel_is_scaled_and_shifted_by_its_own_mean_and_deviation() -> None:
    mean, std = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(2, 3, 1, 3)
    found = Normalize(mean, std)(images)
    assert (found.dtype, found.shape) == (torch.float32, (2, 3, 1, 3))
    for channel in range(3):
        expected = [(value / 255 - mean[channel]) / std[channel] for value in (0, 51, 255)]
        torch.testing.assert_close(found[1, channel, 0], torch.tensor(expected), atol=1e-6, rtol=0)
    assert Normalize(mean, std).state_dict() == {}, "what a model is normalized with is in its card, not its weights"
