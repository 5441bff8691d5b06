"""Sigmas, guidance and Euler steps, on velocities whose result can be written down."""

import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from tools.torch_reference.flow import inference_sigmas, sample  # noqa: E402


class TextVelocity:
    """A stand-in for the DiT: velocity = sum of each text; notes the calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, text):
        self.calls.append((x.clone(), t, text))
        return text.sum((1, 2)).view(-1, 1, 1, 1, 1).expand_as(x)


def test_sigmas():
    assert inference_sigmas(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert inference_sigmas(4, 7.0).tolist() == pytest.approx([1, 7 * 0.75 / 5.5, 7 * 0.5 / 4, 7 * 0.25 / 2.5, 0])
    assert inference_sigmas(50, 7.0).dtype == torch.float64
    with pytest.raises(ValueError, match="num_steps is 0"):
        inference_sigmas(0, 7.0)


def test_constant_velocity_is_integrated_exactly_and_guided():
    """The sigmas add up to one, so noise - (u + g (c - u)) comes out for any schedule."""
    dit = TextVelocity()
    noise = torch.randn(2, 16, 1, 2, 2)
    text = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    negative = torch.tensor([[0.25, 0.25], [0.0, 0.5]]).view(2, 2, 1)
    latent = sample(dit, noise, text, negative, num_steps=5, shift=3.0, guidance=5.0)
    velocity = torch.tensor([0.5 + 5 * 0.5, 0.5 + 5 * 1.5]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(latent, noise - velocity)
    sigmas = inference_sigmas(5, 3.0)
    assert len(dit.calls) == 5
    for (x, t, both), sigma in zip(dit.calls, sigmas, strict=False):
        torch.testing.assert_close(t, torch.full((4,), 1000 * sigma.item()))
        torch.testing.assert_close(x, (noise - (1 - sigma.float()) * velocity).repeat(2, 1, 1, 1, 1))
        assert both.shape == (4, 2, 1)


def test_velocity_that_depends_on_the_sample():
    """v = x: every Euler step multiplies by 1 + sigma_next - sigma."""
    noise = torch.randn(1, 16, 1, 2, 2)
    text = torch.zeros(1, 1, 1)
    latent = sample(lambda x, t, text: x, noise, text, text, num_steps=7, shift=5.0, guidance=2.0)
    torch.testing.assert_close(latent, noise * (1 + inference_sigmas(7, 5.0).diff()).prod().float())


def test_sampling_is_fp32_and_keeps_no_graph():
    dit = TextVelocity()
    text = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    latent = sample(dit, torch.zeros(1, 16, 1, 2, 2, dtype=torch.bfloat16), text, text, 2, 1.0, 5.0)
    assert latent.dtype == torch.float32
    assert not latent.requires_grad
