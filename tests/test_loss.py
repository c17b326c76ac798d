'''The loss as an operator against a literal reference, and against automatic differentiation.'''
import pytest
import torch
from group_features import NETWORKS, Reference, images
from helpers import assert_close, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc.attribution import cross_entropy, hessian


TARGETS = torch.tensor([0, 3, 6])


@pytest.mark.parametrize('name', NETWORKS)
def test_hessian_is_that_of_automatic_differentiation(name):
    model, input = NETWORKS[name](), images()
    found = hessian(model, input, TARGETS)
    for image, target, matrix in zip(input, TARGETS, found):
        def loss(entries, image=image, target=target):
            return F.cross_entropy(model(entries.view(1, *image.shape)), target[None])

        # a sum of seven outer products, next to one of 30 on the other side
        assert_close(matrix, torch.autograd.functional.hessian(loss, image.flatten()), 1e-12)


@pytest.mark.parametrize('classes', [None, 4, 100])
@pytest.mark.parametrize('name', NETWORKS)
def test_products_and_gradient(name, classes):
    model, input = NETWORKS[name](), images()
    loss, directions = cross_entropy(model, input, TARGETS, classes), random_image(*input.shape, seed=5)
    gradient, product = loss.gradient(), loss.product(directions)
    matrices = hessian(model, input, TARGETS, classes)
    for index, target in enumerate(TARGETS.tolist()):
        known = Reference(model, input[index:index + 1], target, chosen(model, input[index:index + 1], target, classes))
        assert abs(loss.log_scale[index].exp().item() - known.s) < 1e-14
        assert_close(known.s * gradient[index].flatten(), known.g, 1e-12)
        assert_close(known.s * product[index].flatten(), known.H @ directions[index].flatten(), 1e-12)
        assert_close(matrices[index], known.H, 1e-12)


def chosen(model, image, target, classes):
    '''The indices of the likeliest classes and the target.'''
    if classes is None:
        return None
    with torch.no_grad():
        return sorted({target, *model(image)[0].topk(min(classes, 7)).indices.tolist()})


def test_separation_of_the_competitors():
    model, image = NETWORKS['CNN'](), images()[:1]
    for target in range(7):  # likely or not
        known, loss = Reference(model, image, target), cross_entropy(model, image, target)
        q = torch.tensor([p / known.s for i, p in enumerate(known.p.tolist()) if i != target], dtype=torch.float64)
        others = known.rows[[i for i in range(7) if i != target]]
        mean = q @ others
        spread = sum(weight * torch.outer(row - mean, row - mean) for weight, row in zip(q, others))
        d = mean - known.rows[target]
        assert_close(loss.gradient().flatten(), d, 1e-12)
        assert_close(known.s * ((1. - known.s) * torch.outer(d, d) + spread), known.H, 1e-12)


@pytest.mark.parametrize('name', NETWORKS)
def test_eigenpairs(name):
    model, input = NETWORKS[name](), images()
    loss = cross_entropy(model, input, TARGETS)
    values, vectors = loss.eigenpairs(8)
    for index, target in enumerate(TARGETS.tolist()):
        known = Reference(model, input[index:index + 1], target)
        expected = torch.linalg.eigvalsh(known.H).flip(0)[:8]
        assert_close(known.s * values[index], expected, 1e-12)
        vector = random_image(known.H.shape[0], seed=3)
        for _ in range(10):
            vector = known.H @ vector
            vector = vector / vector.norm()
        assert vector @ known.H @ vector <= known.s * values[index, 0] * (1. + 1e-14)
        flat = vectors[index].flatten(1)[:6]  # seven classes span a Hessian of rank six
        torch.testing.assert_close(flat @ flat.T, torch.eye(6, dtype=torch.float64), rtol=0., atol=1e-12)
        assert_close(known.H @ flat[0], expected[0] * flat[0], 1e-10)
        assert not vectors[index, 6:].isnan().any()


def test_certain_network_has_derivatives():
    model, input = NETWORKS['MLP'](), images()
    certain = nn.Sequential(model, Scaled(3e4)).eval()
    target = model(input).argmax(1)
    loss = cross_entropy(certain, input, target)
    assert (1. - F.softmax(certain(input), 1).amax(1) == 0.).all()
    second = model(input).topk(2).indices[:, 1]
    for index in range(len(input)):
        rows = Reference(model, input[index:index + 1], 0).rows
        assert_close(loss.gradient()[index].flatten(), 3e4 * (rows[second[index]] - rows[target[index]]), 1e-12)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_single_images_and_batches_agree():
    model, input = NETWORKS['CNN'](), images()
    whole = cross_entropy(model, input, TARGETS, 3)
    for index in range(len(input)):
        one = cross_entropy(model, input[index:index + 1], TARGETS[index:index + 1], 3)
        assert_close(one.gradient(), whole.gradient()[index:index + 1], 1e-13)
        assert_close(one.product(input[index:index + 1]), whole.product(input)[index:index + 1], 1e-13)


def test_refusals():
    model, input = NETWORKS['MLP'](), images()
    with pytest.raises(ValueError, match='there is no class 7'):
        cross_entropy(model, input, 7)
    with pytest.raises(ValueError, match='classes must be two or more'):
        cross_entropy(model, input, 0, 1)
    with pytest.raises(ValueError, match='two classes is needed'):
        cross_entropy(NETWORKS['MLP'](1), input)
    with pytest.raises(ValueError, match=r'\(batch, classes\)'):
        hessian(nn.Flatten(0).eval(), input)
    with pytest.raises(RuntimeError, match='training mode'):
        cross_entropy(model.train(), input)
