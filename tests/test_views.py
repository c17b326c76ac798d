'''In-place operations and views.'''
import pytest
import torch
from helpers import gradient_of, random_image
from jacobians import IMAGE, require_sensitivities, require_streams
from torch.nn import functional as F

from zennit_dc import SplitGrad, SplitTensor


def test_in_place_operation_through_a_view():
    def function(x):
        x = x.clone()
        x[:, :2].mul_(-2.)
        return x

    require_streams(IMAGE, function)
    require_sensitivities(IMAGE, function)


def test_in_place_operations_reach_all_views():
    x = SplitTensor(random_image(2, 4), random_image(2, 4).abs())
    expected = x.difference.clone()
    same, view = x, x.view(4, 2)
    same += 1
    view.mul_(3)
    x[:, :1].neg_()
    expected = (expected + 1) * 3
    expected[:, :1] *= -1
    assert torch.equal(x.difference, expected)
    assert torch.equal(view.difference, expected.view(4, 2))


def test_in_place_relu_changes_its_argument():
    x = SplitTensor(random_image(2, 4), random_image(2, 4).abs())
    expected = x.difference.relu()
    F.relu(x, inplace=True)
    assert torch.equal(x.difference, expected)


def test_in_place_operations_keep_the_dtype():
    pair = SplitTensor.of(torch.ones(2, 3, dtype=torch.bfloat16))
    pair += torch.full((2, 3), 1e-3)
    assert pair.dtype == torch.bfloat16 and torch.equal(pair.difference, torch.ones(2, 3, dtype=torch.bfloat16))
    with pytest.raises(NotImplementedError, match='shape'):
        SplitTensor.of(torch.ones(1, 3)).add_(torch.ones(2, 3))


def test_memory_of_sums_is_that_of_differences():
    pair = SplitTensor.of(torch.ones(2, dtype=torch.bfloat16))
    converted = pair.float()
    converted.view(2, 1).mul_(10.)
    assert torch.equal(pair.stream_sum, torch.ones(2)) and torch.equal(converted.stream_sum, torch.full((2,), 10.))
    pair = SplitTensor(torch.ones(2, 3), torch.ones(3, 2).T)
    pair.view(6).mul_(10.)
    assert torch.equal(pair.difference, torch.full((2, 3), 10.)) and torch.equal(pair.stream_sum, pair.difference)


def test_output_may_be_changed_in_place(network, image):
    expected = gradient_of(network, image) / 2
    image.requires_grad_()
    with SplitGrad(.5).context(network):
        output = network(image)
        output += 1.
        assert torch.equal(torch.autograd.grad(output[:, 2].sum(), image)[0], expected)
