'''What several tests need.'''
import copy

import pytest
import torch


SEED = 0  # of all that is drawn, see --seed
DEVICES = ('cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')))


def explain(composite, network, image, unit=2, **kwargs):
    '''The gradient of one output unit in the composite's context, in which the output must be bit-identical.'''
    # with gradients enabled, as torch's attention takes another path without
    expected = network(image).detach()
    image = image.detach().clone().requires_grad_()
    with composite.context(network):
        output = network(image)
        gradient, = torch.autograd.grad(output[:, unit].sum(), image, **kwargs)
    assert torch.equal(output, expected)
    return gradient


def divided(epsilon=1e-6):
    '''The error of relevance in float64, relative to a map's largest entry: a neuron that is nearly zero is off by
    some 1e-14, the rounding of sums of up to a hundred products, and is divided by no less than epsilon.'''
    return 1e-14 / epsilon


def random_image(*shape, seed=1, dtype=torch.float64):
    '''Normally distributed values from a seed.'''
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 10 ** 6 * SEED), dtype=dtype)


def alive(model, *shape, seed=1):
    '''A random image of which each output depends on each sample: small networks may be zero for others.'''
    while True:
        image = random_image(*shape, seed=seed).requires_grad_()
        output = model(image)
        gradients = [torch.autograd.grad(each, image, retain_graph=True)[0] for each in output.sum(0)]
        if all(gradient.flatten(1).any(1).all() for gradient in gradients):
            return image.detach()
        seed += 1000


def assert_close(actual, expected, tolerance=1e-10):
    '''Equality relative to the largest expected entry: the literal implementation sums up to some thousand float64
    products of like magnitude, so that both sides differ by some 1e-13 of it.'''
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def gradient_of(network, image, unit=2):
    '''The plain gradient of one output unit.'''
    image = image.detach().clone().requires_grad_()
    return torch.autograd.grad(network(image)[:, unit].sum(), image)[0]


def rounding(model, *inputs, unit=1, read=lambda output: output, factor=16.):
    '''The error that a map in a dtype may have, relative to its largest entry: that which torch's own gradient has, in
    this dtype and by the kernels of this machine, against float64, times a factor. A map takes two backward passes, of
    the difference and of the sum, and a product; and the gradient's largest error is that of one draw. Four bits.'''
    def gradient(model, *inputs):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        found = torch.autograd.grad(read(model(*leaves))[:, unit].sum(), leaves)
        return torch.cat([each.double().flatten() for each in found])

    exact = gradient(copy.deepcopy(model).double(), *(each.double() for each in inputs))
    error = (gradient(model, *inputs) - exact).abs().max() / exact.abs().max()
    return factor * max(error.item(), torch.finfo(inputs[0].dtype).eps)


def drawn(count, seed):
    '''Images of which the brightest of ten columns tells the class.'''
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.randint(0, 120, (count, 1, 28, 28), generator=generator)
    images[torch.arange(count), 0, :, 2 * labels + 4] += 120
    return images.to(torch.uint8), labels


def gradients(composite, model, *inputs):
    '''The gradients of a class by inputs in a composite's context.'''
    leaves = [each.clone().requires_grad_() for each in inputs]
    with composite.context(model):
        return torch.autograd.grad(model(*leaves)[:, 1].sum(), leaves)
