import torch

from benchmarks.speed.bare import THRESHOLD, Masked, Restored, Scored, bare_steps


def test_a_weight_that_is_put_right_moves_as_a_masked_one():
    weights = []
    for kind in (Masked, Restored):
        torch.manual_seed(0)
        weight = kind(6, 4)
        weight.own.data = weight().detach()
        optimizer = torch.optim.Adam([weight.own], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (weight() - 1).square().sum().backward()
            optimizer.step()
            weight.after_step()
        weights.append(weight().detach())
    assert torch.allclose(*weights, atol=1e-6)
    assert not torch.equal(weights[0], weight.frozen)


def test_a_learned_mask_has_the_gradients_of_a_straight_through_estimate():
    weight = Scored(6, 4)
    weight().square().sum().backward()
    own, scores = (part.detach().clone().requires_grad_() for part in (weight.own, weight.scores))
    size = scores.abs()
    mask = (size > THRESHOLD).float() + size - size.detach()
    expected = mask * (weight.frozen + weight.writable * own)
    expected.square().sum().backward()
    assert torch.allclose(weight(), expected, atol=1e-6)
    assert torch.allclose(weight.own.grad, own.grad, atol=1e-6)
    assert torch.allclose(weight.scores.grad, scores.grad, atol=1e-6)


def test_every_kind_but_the_plain_one_has_a_line():
    figures = bare_steps(batch=4, batches=2, rounds=1)
    assert [figure.what.split(": ")[1] for figure in figures] == [
        "masked (packnet)",
        "masked, put right after the step",
        "learned mask (wsn)",
        "factored (cacl)",
    ]
    assert all(figure.ratio > 0 and figure.reference == "a plain weight" for figure in figures)
