'''Scaling and shifting.'''
import torch
from helpers import random_image
from hypothesis import given, settings
from hypothesis import strategies as st
from literal import Network

from zennit_dc import Scaling, Shifting, SplitLRP, SplitTensor


def test_scaling_by_hand():
    difference = torch.tensor([[1., -2.], [1., -2.], [1., -2.], [30., 0.]])
    stream_sum = torch.tensor([[3., 5.], [30., 5.], [3000., 5.], [30., 1.]])
    # untouched; excess 29 times 0.1; excess 2999 times 0.001 (299.9 and 29.99 exceed 10); entry 30 at excess 0 and 1
    expected = torch.tensor([[3., 5.], [3.9, 2.3], [3.999, 2.003], [30., .1]])
    torch.testing.assert_close(Scaling()(difference, stream_sum), expected)


def test_shifting_makes_streams_half_of_the_difference():
    difference, stream_sum = random_image(2, 5), random_image(2, 5, seed=2)
    assert torch.equal(Shifting()(difference, stream_sum), torch.zeros(2, 5, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2 ** 31), st.sampled_from(['wta', 'convex']), st.floats(.01, .9), st.floats(.1, 100.))
def test_scaling_keeps_streams_non_negative(seed, pooling, theta, threshold):
    network, image = Network(seed % 5), 10 * random_image(2, 3, 16, 16, seed=seed)
    seen = []

    def check(module, args, output):
        if isinstance(output, SplitTensor):
            largest = output.stream_sum.abs().max()
            assert output.positive_stream.min() >= -1e-15 * largest
            assert output.negative_stream.min() >= -1e-15 * largest
            if isinstance(module, torch.nn.Conv2d):
                excess = output.stream_sum - output.difference.abs()
                # an entry of the streams is at least half of the excess
                assert excess.max() <= 2 * threshold * (1 + 1e-9)
            seen.append(module)

    handles = [module.register_forward_hook(check) for module in network.modules()]
    composite = SplitLRP(pooling=pooling, recentering=Scaling(theta, threshold))
    with composite.context(network):
        network(image)
    for handle in handles:
        handle.remove()
    assert len(seen) > 10
